"""GPUs: NVIDIA's through NVML, AMD's through amdsmi where ROCm has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from engines.base import ContainerSettings
from launcher.devices import amd, nvidia
from launcher.devices.base import (
    Capability,
    HostDevices,
    Problem,
    Resource,
    Surroundings,
    Survey,
)
from launcher.devices.host import pci_functions
from launcher.devices.unbound import Card, unbound

#: torch's release → the major version of CUDA that its builds on the default index need
_CUDA_OF_TORCH = {"2.13": 13}


class Gpu(HostDevices):
    """NVIDIA's and AMD's GPUs; if there are both, each vendor's are a group of their own."""

    kind = "gpu"
    label = "GPU"
    looked_for: ClassVar[str] = (
        "NVIDIA's driver (/proc/driver/nvidia) with NVML, and AMD's (/dev/kfd) with the package amdsmi"
    )
    #: NVML's name → memory as NVML reports it (MiB), on some products less than the printed size
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

    def _look(self) -> Survey:
        green = nvidia.look(self.root)
        red = amd.look(self.root, first=len(green.resources))
        if green.resources and red.resources:  # no deployment can use both
            green, red = _grouped(green, "nvidia"), _grouped(red, "amd")
        return Survey(
            (*green.resources, *red.resources),
            (*green.problems, *red.problems),
            {**green.versions, **red.versions},
        )

    def _unusable(self, found: Survey) -> Sequence[Problem]:
        """Return a problem for each of NVIDIA's GPUs that no driver serves."""
        card = Card("NVIDIA GPU", "/dev/nvidia*", "install NVIDIA's driver and load it")
        present = any("nvidia" in gpu.tags for gpu in found.resources) or bool(found.problems)
        graphics = (one for one in pci_functions(self.root, nvidia.VENDOR) if one.function_class.startswith("0x03"))
        return tuple(unbound(card, graphics, present))

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:
        """Return CUDA_VISIBLE_DEVICES with UUIDs (numbers if unknown), or HIP_VISIBLE_DEVICES for AMD's GPUs."""
        gpus = {resource.id: resource for resource in found}
        if ids and all("amd" in gpus[number].tags for number in ids if number in gpus) and ids[0] in gpus:
            return {"HIP_VISIBLE_DEVICES": ",".join(str(gpus[number].attributes["index"]) for number in ids)}
        uuids = {resource.id: str(resource.attributes["uuid"]) for resource in found if "uuid" in resource.attributes}
        # A UUID where it is known; NVML counts in PCI order, and CUDA does so only when told.
        shown = ",".join(uuids.get(number, str(number)) for number in ids)
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": shown}

    def container(self, ids: tuple[int, ...], found: Sequence[Resource]) -> ContainerSettings:
        """Return NVIDIA's GPUs as a device request with UUIDs, or CDI; AMD's as nodes, as ROCm's images ask for."""
        if "HIP_VISIBLE_DEVICES" in (env := self.visible_env(ids, found)):
            return ContainerSettings(
                nodes=("/dev/kfd", "/dev/dri"), groups=("video", "render"), security=("seccomp=unconfined",), env=env
            )
        uuids = {resource.id: str(resource.attributes["uuid"]) for resource in found if "uuid" in resource.attributes}
        shown = tuple(uuids.get(number, str(number)) for number in ids)
        return ContainerSettings(
            cdi=tuple(f"nvidia.com/gpu={name}" for name in shown),
            gpu_ids=shown,
            ulimits={"memlock": -1, "stack": 67108864},  # as NVIDIA's images ask for
            env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},  # only these are seen inside
        )

    def mismatches(self, around: Surroundings) -> Sequence[Problem]:
        """Return a problem if torch is built for another vendor's GPUs, or for a newer CUDA than the driver runs."""
        versions = around.versions
        torch, cuda = around.packages.get("torch", ""), versions.get("cuda", "")
        if (
            torch
            and "rocm" not in torch
            and "HIP_VISIBLE_DEVICES" in around.env
            and "CUDA_DEVICE_ORDER" not in around.env
        ):
            what = f"the GPUs are AMD's, and torch {torch} is not built for ROCm"
            return (Problem(what, "use an environment of your own that has ROCm's torch: engine.environment=/path"),)
        wanted = next((major for release, major in _CUDA_OF_TORCH.items() if torch.startswith(f"{release}.")), None)
        if not wanted or not cuda or "+cpu" in torch or int(cuda.partition(".")[0]) >= wanted:
            return ()
        what = f"torch {torch} is built for CUDA {wanted}, and NVIDIA's driver {versions.get('driver', '')} runs {cuda}"
        return (Problem(what, "update the driver"),)

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the types that the GPUs compute in and their vendors' goals, without limits."""
        return Capability(dtype=("float32", "float16", "bfloat16"), optimized_for=("latency", "throughput"))


def _grouped(survey: Survey, group: str) -> Survey:
    """Return `survey` with `group` as the group of each GPU; a deployment gets devices of one group."""
    marked = (replace(gpu, attributes={**gpu.attributes, "group": group}) for gpu in survey.resources)
    return replace(survey, resources=tuple(marked))
