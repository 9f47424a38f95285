"""NVIDIA's GPUs through NVML, the library of the driver. The tests have no GPU: they use a made-up NVML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.devices.base import Problem, Resource, Survey, known

VENDOR = "10de"


def look(root: Path) -> Survey:
    """Return the GPUs that the driver shows and CUDA_VISIBLE_DEVICES leaves us; NVML ignores that variable."""
    if not (root / "proc/driver/nvidia").exists():
        return Survey()  # importing and initialising NVML costs tens of milliseconds
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        what = f"NVIDIA's driver is loaded, but NVML does not start: {exc}"
        return Survey(problems=(Problem(what, "reboot after an update of the driver; see what nvidia-smi says"),))
    try:
        versions = _versions()
        found: list[Resource] = []
        problems: list[Problem] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_resource(index, versions))
            except pynvml.NVMLError as exc:  # noqa: PERF203  (one lost GPU must not hide the others)
                problems.append(Problem(f"NVIDIA GPU {index} does not answer: {exc}", "see dmesg for Xid errors"))
        ours = allowed(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return Survey(ours, (*problems, *_notes(ours)), versions)
    except pynvml.NVMLError as exc:
        return Survey(problems=(Problem(f"NVML fails: {exc}", "see what nvidia-smi says"),))
    finally:
        pynvml.nvmlShutdown()


def allowed(found: Sequence[Resource], visible: str | None) -> tuple[Resource, ...]:
    """Return those of `found` that CUDA_VISIBLE_DEVICES leaves us (a scheduler's share); `visible` None leaves all."""
    if visible is None:
        return tuple(found)
    words = [word.strip() for word in visible.split(",") if word.strip()]
    return tuple(
        resource
        for resource in found
        if any(word == str(resource.id) or str(resource.attributes["uuid"]).startswith(word) for word in words)
    )


def _resource(index: int, versions: Mapping[str, str]) -> Resource:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    capability = _ask("nvmlDeviceGetCudaComputeCapability", handle)
    mig = _ask("nvmlDeviceGetMigMode", handle)
    numa = _ask("nvmlDeviceGetNumaNodeId", handle)
    attributes: dict[str, Any] = {
        "vendor": "nvidia",
        "product": _text(pynvml.nvmlDeviceGetName(handle)),
        "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
        "memory_bytes": int(memory.total),
        "used_bytes": int(memory.used),
        "holders": _holders(handle),
        "pci": _text(getattr(_ask("nvmlDeviceGetPciInfo", handle), "busId", None)),
        "driver": versions.get("driver"),
        "firmware": _text(_ask("nvmlDeviceGetVbiosVersion", handle)),
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "numa": numa if isinstance(numa, int) and numa < 1 << 16 else None,
        "mig": True if mig and mig[0] else None,
    }
    tags = frozenset({"nvidia", *(("mig",) if attributes["mig"] else ())})
    return Resource(index, "gpu", known(attributes), tags)


def _holders(handle: Any) -> dict[int, int]:
    """Return pid → bytes of the GPU's memory; 0 where NVML does not say how much, as in containers."""
    import pynvml

    try:
        return {
            process.pid: process.usedGpuMemory or 0 for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        }
    except pynvml.NVMLError:
        return {}


def _versions() -> Mapping[str, str]:
    """Return the versions of the driver and NVML; `cuda` is the newest CUDA that the driver can run."""
    cuda = _ask("nvmlSystemGetCudaDriverVersion")
    found = {
        "driver": _text(_ask("nvmlSystemGetDriverVersion")),
        "nvml": _text(_ask("nvmlSystemGetNVMLVersion")),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else None,
    }
    return {key: value for key, value in found.items() if value}


def _notes(found: Sequence[Resource]) -> Sequence[Problem]:
    return [
        Problem(
            f"NVIDIA GPU {gpu.id} is split by MIG: a process that is shown it gets the first of its instances, not all "
            "of its memory",
            f"nvidia-smi -i {gpu.id} -mig 0 joins it again",
            blocks=False,
        )
        for gpu in found
        if "mig" in gpu.tags
    ]


def _ask(name: str, *arguments: Any) -> Any:
    """Return NVML's answer; None if this NVML or this GPU does not know the question."""
    import pynvml

    function: Callable[..., Any] | None = getattr(pynvml, name, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _text(said: object) -> str | None:
    """Return `said` as text, also from older bindings, which return bytes; None for anything else."""
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return said if isinstance(said, str) else None
