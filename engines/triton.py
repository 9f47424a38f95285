"""NVIDIA Triton Inference Server: language models in its Python backend, or in its vLLM backend.

Tensor names are those of Triton's own vLLM backend (text_input, stream, sampling_parameters, text_output), so that
clients need not know which of the two serves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, ClassVar

from engines.base import (
    Capabilities,
    Chunk,
    Endpoint,
    Endpoints,
    Engine,
    HttpCheck,
    LaunchPlan,
    PlanError,
    Probes,
    Request,
    ServeSpec,
    Target,
    Vector,
)
from engines.triton_client import TritonClient
from engines.triton_repository import python_model, vllm_model

#: what `engine.backend=auto` means
_BACKENDS = {"cpu": "python", "gpu": "python", "rbln": "vllm"}


class Triton(Engine):
    name: ClassVar[str] = "triton"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={"cpu": ("safetensors",), "gpu": ("safetensors",), "rbln": ("rbln",)}
    )
    ports: ClassVar[tuple[str, ...]] = ("http", "grpc", "metrics")

    def __init__(self) -> None:
        self._client = TritonClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        backend = _backend(spec.options, spec.device.kind)
        _refuse_unused(spec, backend)
        model = python_model(spec) if backend == "python" else vllm_model(spec)
        http, grpc, metrics = spec.ports
        host = spec.connect_host
        return LaunchPlan.of(
            spec,
            argv=(*_program(spec, backend), *_flags(spec)),
            endpoints=Endpoints(Endpoint(host, http), Endpoint(host, grpc), f"{Endpoint(host, metrics).url}/metrics"),
            probes=_probes(spec),
            env=_environment(spec, backend),
            files=model.files,
            links=model.links,
            # Its places are fixed: shared memory that a killed stub leaves, and an empty folder of every start.
            leftovers=(f"/dev/shm/{_shm_prefix(spec)}*", "/tmp/python_env_??????"),  # noqa: S108
            chat=backend == "python",  # Triton's vLLM backend takes a prompt, and applies no template
            shm_size="1g",
        )

    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        return self._client.infer(target, request)

    def close(self) -> None:
        self._client.close()

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:
        return "gpu-vllm" if kind == "gpu" and _backend(options, kind) == "vllm" else kind


def _backend(options: Mapping[str, Any], kind: str) -> str:
    asked = str(options["backend"])
    if asked == "auto":
        return _BACKENDS[kind]
    if asked not in ("python", "vllm"):
        raise PlanError(f"engine.backend={asked!r} is not known; use auto, python or vllm")
    if (kind, asked) in (("cpu", "vllm"), ("rbln", "python")):
        raise PlanError(f"engine.backend={asked} cannot use device={kind}; use engine.backend={_BACKENDS[kind]}")
    return asked


def _refuse_unused(spec: ServeSpec, backend: str) -> None:
    if spec.options["protocol"] not in ("grpc", "http"):
        raise PlanError(f"engine.protocol={spec.options['protocol']!r} is not known; use grpc or http")
    if backend == "vllm" and spec.options["handler"]:
        raise PlanError("engine.handler is a model.py for engine.backend=python; leave it out with backend=vllm")
    if backend == "python" and spec.options["max_num_seqs"]:
        raise PlanError("engine.max_num_seqs is for engine.backend=vllm; with backend=python use engine.workers")


def _program(spec: ServeSpec, backend: str) -> tuple[str, ...]:
    """The server and where its backends are.

    nvidia-pytriton carries a tritonserver that has the Python backend alone; the vLLM backend needs one from NVIDIA's
    container, which finds its backends by itself.
    """
    if backend == "vllm":
        server, backends = spec.program or "tritonserver", spec.options["backend_directory"]
    else:
        server = spec.program or f"{spec.environment.site_packages}/pytriton/tritonserver/bin/tritonserver"
        backends = spec.options["backend_directory"] or f"{spec.run_dir}/backends"
    return (server, "--backend-directory", backends) if backends else (server,)


def _flags(spec: ServeSpec) -> list[str]:
    http, grpc, metrics = spec.ports
    flags = ["--model-repository", f"{spec.run_dir}/models"]
    # Complete configs, so that what is served is what the plan shows.
    flags += ["--disable-auto-complete-config", "--exit-on-error", "true", "--strict-readiness", "true"]
    # In-flight requests are answered within this many seconds; then the stub needs about 4 more to end.
    flags += ["--exit-timeout-secs", str(max(1, int(spec.stop_grace_s) - 4))]
    for service, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        flags += [f"--{service}-address", spec.bind, f"--{service}-port", str(port)]
    flags += ["--backend-config", f"python,shm-region-prefix-name={_shm_prefix(spec)}"]
    for key, value in spec.args.items():
        if value is not None:
            flags += ["--" + key.replace("_", "-"), str(value).lower() if isinstance(value, bool) else str(value)]
    return flags


def _shm_prefix(spec: ServeSpec) -> str:
    # Not the name: that of one deployment can be the beginning of another's.
    return f"rmlaunch-{sha256(spec.run_dir.encode()).hexdigest()[:12]}-"


def _environment(spec: ServeSpec, backend: str) -> Mapping[str, str]:
    env = {
        # The Python backend's stub takes the python3 that stands first.
        "PATH": f"{spec.environment.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HF_HUB_OFFLINE": "1",  # everything was fetched before the launch
    }
    if backend == "python" and spec.environment.library_dir:
        # The stub embeds Python: of two libpythons it must find the one that the environment stands on.
        env["LD_LIBRARY_PATH"] = spec.environment.library_dir
    return env


def _probes(spec: ServeSpec) -> Probes:
    ready = HttpCheck("/v2/health/ready")
    body = {
        "text_input": "a",
        "stream": False,
        "exclude_input_in_output": True,
        "return_num_output_tokens": True,
        "sampling_parameters": json.dumps({"max_tokens": 1, "temperature": 0}),
    }
    canary = HttpCheck(f"/v2/models/{spec.model.id}/generate", "POST", body, expect="num_output_tokens")
    return Probes(startup=ready, readiness=canary, liveness=ready, settings=spec.probes)
