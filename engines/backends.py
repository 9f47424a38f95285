"""The two backends that Triton and TorchServe share: a model runs in Python code of ours (templates/), or in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines import memory_use
from engines.async_engine_args import KV_CACHE_BYTES
from engines.base import Device, MemoryUse, Model, PlanError, ServeSpec

#: `Capabilities.formats`
FORMATS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cpu": {"generate": ("safetensors",), "embed": ("safetensors",), "tensor": ("torchscript", "onnx")},
    "gpu": {"generate": ("safetensors",), "embed": ("safetensors",), "tensor": ("torchscript", "onnx")},
    "rbln": {"generate": ("rbln",), "tensor": ("rbln",)},
}

#: device and task → the backends that can serve it; `engine.backend=auto` means the first
BACKENDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("cpu", "generate"): ("python",),
    ("cpu", "embed"): ("python",),
    ("cpu", "tensor"): ("python",),
    ("gpu", "generate"): ("python", "vllm"),
    ("gpu", "embed"): ("python",),
    ("gpu", "tensor"): ("python",),
    ("rbln", "generate"): ("vllm",),
    ("rbln", "tensor"): ("python",),
}


def choose(spec: ServeSpec, backends: Mapping[tuple[str, str], tuple[str, ...]] = BACKENDS) -> str:
    """Return the backend that `engine.backend` means for this device and task. Raises `PlanError` if there is none."""
    asked, kind, task = str(spec.options["backend"]), spec.device.kind, spec.model.task
    able = ("python",) if spec.library else backends[kind, task]
    if asked == "auto":
        return able[0]
    if asked not in ("python", "vllm"):
        raise PlanError(f"engine.backend={asked!r} is not known; use auto, python or vllm")
    if asked not in able:
        raise PlanError(
            f"engine.backend={asked} cannot serve model.task={task} on device={kind}; use engine.backend={able[0]}"
        )
    return asked


def check_one_gpu(spec: ServeSpec) -> None:
    """Raise `PlanError` if our own code is given several GPUs."""
    if spec.device.kind == "gpu" and spec.device.count > 1:
        instead = ", or use engine.backend=vllm" if spec.model.task == "generate" else ""
        raise PlanError(
            f"engine.backend=python uses one GPU, but device.ids={list(spec.device.ids)}; give one{instead}"
        )


def memory(model: Model, device: Device, options: Mapping[str, Any], cpu_bytes: int) -> MemoryUse:
    """Return the memory use of either backend.

    `cpu_bytes` are those of the server and one worker without a model, on a CPU.
    """
    asked = {"max_num_seqs": options["max_num_seqs"], **options.get("vllm_args", {})}
    if device.kind == "rbln":
        return memory_use.rbln(model, device, asked)
    if options["backend"] == "vllm":
        if device.kind == "cpu":
            return memory_use.vllm_cpu(model, asked, KV_CACHE_BYTES)
        return memory_use.vllm_gpu(model, device, asked)
    generates = model.task == "generate"
    workers = options["workers"] or (2 if generates else 1)
    return memory_use.transformers_model(
        model, device, sequences=workers, copies=1 if generates else workers, cpu_bytes=cpu_bytes
    )
