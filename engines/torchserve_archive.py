"""TorchServe's model archives: the files that go into one, and the build step that packs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Any

from engines.async_engine_args import engine_args
from engines.backends import check_one_gpu
from engines.base import FILES, OUTPUT, BuildProfile, BuildStep, PlanError, ServeSpec

VERSION = "1.0"  #: the version of every model, which stands in the paths of the inference API

#: torch-model-archiver's name of a format (`engine.archive`) → the end of the archive's name
_FORMATS = {"default": ".mar", "zip-store": ".mar", "no-archive": ""}

#: task → a handler of templates/torchserve, and the modules that it imports from there and from templates/models
_SHARED = ("torchserve_worker.py", "bad_request.py", "decoding.py")
_TEXT = (*_SHARED, "turns.py", "openai_api.py")
_HANDLERS = {
    "generate": ("generate_handler.py", (*_TEXT, "hugging_face.py", "language_model.py")),
    "vllm": ("vllm_handler.py", _TEXT),
    "embed": ("embed_handler.py", (*_SHARED, "openai_api.py", "hugging_face.py", "embedding.py")),
    "tensor": ("tensor_handler.py", (*_SHARED, "hugging_face.py", "tensor_model.py", "tensors.py")),
}

#: requests that vLLM is given at the same time by default; vLLM batches them as it can
_VLLM_SLOTS = 64


def archive(spec: ServeSpec, backend: str) -> tuple[BuildStep, str]:
    """Return the step that makes the model store, and the archive's name in it.

    The store's name depends on all that is in the archive. Weights are in it only if they are one file, or if
    `engine.archive` asks for that; else model-config.yaml says where they lie.
    """
    how = _format(spec)
    inside = how != "no-archive"
    kind = "vllm" if backend == "vllm" else spec.model.task
    name, modules = _HANDLERS[kind]
    modules = (*modules, "native.py") if spec.library else modules
    if spec.options["handler"]:
        name, handler = "handler.py", spec.templates["handler"]
    else:
        handler = spec.templates[name]
    files = {
        name: handler,
        **{module: spec.templates[module] for module in modules},
        "model-config.yaml": _config(spec, backend, inside),
    }
    extra = [f"{FILES}/{module}" for module in modules]
    weights = []
    if inside:
        if spec.model.task == "tensor":
            weights = ["--serialized-file", spec.model.path]
        else:
            extra.append(spec.model.path)
    argv = (
        f"{spec.builder.bin}/torch-model-archiver", "--model-name", spec.model.id, "--version", VERSION,
        "--handler", f"{FILES}/{name}", "--config-file", f"{FILES}/model-config.yaml", *weights,
        "--extra-files", ",".join(extra), "--archive-format", how, "--export-path", OUTPUT,
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    made_from = [spec.model.path, spec.model.identity] if inside else []
    profile = BuildProfile(
        target=spec.device.kind,
        compiler="torch-model-archiver",
        compiler_version=spec.builder.version,
        flags={"archive-format": how, "files": digest},
        interface="mar",
    )
    step = BuildStep(
        name="torch-model-archiver",
        argv=argv,
        output=profile.place(spec.artifacts, spec.model.id, json.dumps(made_from)),
        environment=spec.builder,
        files=files,
        model_id=spec.model.id,
        profile=profile,
    )
    return step, f"{spec.model.id}{_FORMATS[how]}"


def _format(spec: ServeSpec) -> str:
    asked = str(spec.options["archive"])
    if asked == "auto":
        # Weights do not shrink; unpacking them takes long enough.
        return "zip-store" if spec.model.task == "tensor" else "no-archive"
    if asked not in _FORMATS:
        raise PlanError(f"engine.archive={asked!r} is not known; use auto, {', '.join(_FORMATS)}")
    return asked


def _config(spec: ServeSpec, backend: str, inside: bool) -> str:
    """Return the text of model-config.yaml; JSON is YAML."""
    path = _path_inside(spec) if inside else spec.model.path
    if backend == "vllm":
        handler, slots = _vllm(spec, path)
    else:
        handler, slots = _python(spec, path)
    # One process answers many requests for text; other models take one at a time, so copies of them do.
    turns = spec.model.task == "generate" and not spec.options["handler"]
    processes = 1 if turns else slots
    config = {
        "minWorkers": processes,
        "maxWorkers": processes,
        "batchSize": slots if turns else 1,
        "maxBatchDelay": 1,  # ms, for which a request waits for others
        "continuousBatching": turns,
        "startupTimeout": int(spec.probes.startup_timeout_s),
        "responseTimeout": spec.options["response_timeout_s"],
        "handler": handler,
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())


def _path_inside(spec: ServeSpec) -> str:
    """Return the model's path below the folder that the archive is unpacked to."""
    return PurePosixPath(spec.model.path).name if spec.model.task == "tensor" else "."


def _python(spec: ServeSpec, path: str) -> tuple[Mapping[str, Any], int]:
    """Return the settings that a handler of ours reads, and how many requests it computes at the same time."""
    model = spec.model
    check_one_gpu(spec)
    workers = int(spec.options["workers"] or (2 if model.task == "generate" else 1))
    kind = spec.device.kind
    device = {"gpu": "cuda", "rbln": f"rbln:{spec.device.count}"}.get(kind, kind)
    about: Mapping[str, Any]
    if model.task == "tensor":
        about = {
            "model_format": model.format,
            "inputs": [asdict(tensor) for tensor in model.inputs],
            "outputs": [asdict(tensor) for tensor in model.outputs],
            **({"library": dict(spec.library)} if spec.library else {}),
        }
    else:
        about = {"dtype": model.dtype, "max_context": model.context_length}
    return {"model_path": path, "device": device, **about, "workers": workers}, workers


def _vllm(spec: ServeSpec, path: str) -> tuple[Mapping[str, Any], int]:
    """Return the settings that the vLLM handler reads, and how many requests it hands to vLLM at the same time."""
    given, seqs = dict(spec.options["vllm_args"]), spec.options["max_num_seqs"]
    if "model" in given:
        raise PlanError("engine.vllm_args.model is set by the launcher; use model.source")
    keys = {name: f"engine.vllm_args.{name}" for name in given}
    if seqs is not None:
        if given.get("max_num_seqs", seqs) != seqs:
            raise PlanError(f"engine.max_num_seqs={seqs}, but engine.vllm_args.max_num_seqs={given['max_num_seqs']}")
        given["max_num_seqs"], keys["max_num_seqs"] = seqs, "engine.max_num_seqs"
    args = engine_args(replace(spec.model, path=path), spec.device, given, keys)
    return {"engine_args": args}, int(args.get("max_num_seqs", _VLLM_SLOTS))
