"""The host's processor, as much of it as this process may use."""

from __future__ import annotations

import os
from typing import ClassVar

from launcher.devices.base import DevicePlugin, Resource


class Cpu(DevicePlugin):
    kind = "cpu"
    label = "processor"
    looked_for: ClassVar[str] = "the processor"
    shared = True

    def detect(self) -> tuple[Resource, ...]:
        """One resource: the whole processor. `cores` counts those that this process may run on."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return (Resource(0, self.kind, {"cores": len(os.sched_getaffinity(0)), "memory_bytes": memory}),)
