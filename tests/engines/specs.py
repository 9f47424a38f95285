"""Specs for tests of `plan`: what resolve would hand over, written out."""

from __future__ import annotations

from typing import Any

from engines.base import Device, Environment, Model, ServeSpec

ENVIRONMENT = Environment("e", "/env", "3.11", library_dir="/lib/python")


def triton_spec(
    kind: str = "cpu",
    *,
    ids: tuple[int, ...] = (0,),
    backend: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> ServeSpec:
    formats = {"cpu": "safetensors", "gpu": "safetensors", "rbln": "rbln"}
    own = {"backend": backend, "protocol": "grpc", "workers": 2, "handler": None, "max_num_seqs": None,
           "backend_directory": None}  # fmt: skip
    return ServeSpec(
        name="t",
        engine="triton",
        device=Device(kind, ids, env={"VISIBLE": "yes"}),
        model=Model("m", "file:/w", formats[kind], "/weights", batch_size=batch_size),
        runtime="process",
        environment=ENVIRONMENT,
        bind="127.0.0.1",
        ports=(8000, 8001, 8002),
        run_dir="/run",
        options={**own, **options},
        templates={"generate.py": "# generate\n", "decoding.py": "# decoding\n"},
    )


def llamacpp_spec(**changes: Any) -> ServeSpec:
    values: dict[str, Any] = {
        "name": "l",
        "engine": "llamacpp",
        "device": Device("cpu"),
        "model": Model("m", "file:/w.gguf", "gguf", "/w.gguf"),
        "runtime": "process",
        "environment": ENVIRONMENT,
        "bind": "127.0.0.1",
        "ports": (8000,),
        "run_dir": "/run",
        "templates": {"server.py": "# server\n"},
    }
    return ServeSpec(**{**values, **changes})
