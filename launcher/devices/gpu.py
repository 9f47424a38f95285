"""NVIDIA GPUs, found through NVML. Not run against a GPU by the tests: they have none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from launcher.devices.base import GIB, DevicePlugin, Resource


class Gpu(DevicePlugin):
    kind = "gpu"
    label = "NVIDIA GPU"
    looked_for: ClassVar[str] = "NVIDIA's driver (/proc/driver/nvidia) and NVML (nvidia-ml-py)"
    products: ClassVar[Mapping[str, int]] = {
        "NVIDIA L4": 24 * GIB,
        "NVIDIA A10": 24 * GIB,
        "NVIDIA A100 80GB": 80 * GIB,
        "NVIDIA H100 80GB HBM3": 80 * GIB,
        "NVIDIA H200": 141 * GIB,
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
            return tuple(_resource(index) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError:
            return ()
        finally:
            pynvml.nvmlShutdown()

    def visible_env(self, ids: tuple[int, ...]) -> Mapping[str, str]:
        # NVML counts in PCI order; CUDA does so only when told.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, ids))}


def _resource(index: int) -> Resource:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    attributes = {"product": pynvml.nvmlDeviceGetName(handle), "memory_bytes": memory.total, "used_bytes": memory.used}
    return Resource(index, "gpu", attributes)
