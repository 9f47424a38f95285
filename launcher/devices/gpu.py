"""NVIDIA GPUs, found through NVML. Not run against a GPU by the tests: they have none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launcher.devices.base import DevicePlugin, Resource


class Gpu(DevicePlugin):
    kind = "gpu"
    label = "NVIDIA GPU"
    looked_for: ClassVar[str] = "NVIDIA's driver (/proc/driver/nvidia) and NVML (nvidia-ml-py)"
    #: by NVML's names; what NVML says of their memory (MiB), which is less than what is printed on some
    products: ClassVar[Mapping[str, int]] = {
        name: mib << 20
        for name, mib in {
            "NVIDIA L4": 23034,
            "NVIDIA L40S": 46068,
            "NVIDIA A10": 23028,
            "NVIDIA A100 80GB": 81920,
            "NVIDIA H100 80GB HBM3": 81559,
            "NVIDIA H200": 143771,
            "NVIDIA RTX A6000": 49140,
            "NVIDIA GeForce RTX 3060": 12288,
            "NVIDIA GeForce RTX 3080": 10240,
            "NVIDIA GeForce RTX 3090": 24576,
            "NVIDIA GeForce RTX 4080": 16376,
            "NVIDIA GeForce RTX 4090": 24564,
            "NVIDIA GeForce RTX 5090": 32607,
            "Tesla T4": 15360,
        }.items()
    }
    assumed_product = "NVIDIA H100 80GB HBM3"

    def detect(self) -> tuple[Resource, ...]:
        if not Path("/proc/driver/nvidia").exists():
            return ()  # importing and initialising NVML costs tens of milliseconds
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return ()  # a driver that is loaded but broken offers no device
        try:
            found = [_resource(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return allowed(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError:
            return ()
        finally:
            pynvml.nvmlShutdown()

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:
        uuids = {resource.id: str(resource.attributes["uuid"]) for resource in found}
        # By UUID where it is known; NVML counts in PCI order, and CUDA does so only when told.
        shown = ",".join(uuids.get(number, str(number)) for number in ids)
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": shown}


def allowed(found: Sequence[Resource], visible: str | None) -> tuple[Resource, ...]:
    """Those of `found` that the caller's CUDA_VISIBLE_DEVICES leaves us (a scheduler's share); NVML shows them all."""
    if visible is None:
        return tuple(found)
    words = [word.strip() for word in visible.split(",") if word.strip()]
    return tuple(
        resource
        for resource in found
        if any(word == str(resource.id) or str(resource.attributes["uuid"]).startswith(word) for word in words)
    )


def _resource(index: int) -> Resource:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    attributes = {
        "product": pynvml.nvmlDeviceGetName(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "memory_bytes": memory.total,
        "used_bytes": memory.used,
        "holders": _holders(handle),
    }
    return Resource(index, "gpu", attributes)


def _holders(handle: Any) -> dict[int, int]:
    """Who has memory of it, in bytes; 0 where NVML does not say how much, as inside of containers."""
    import pynvml

    try:
        return {
            process.pid: process.usedGpuMemory or 0 for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        }
    except pynvml.NVMLError:
        return {}
