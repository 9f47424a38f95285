"""Processing in memory. UPMEM's ranks can be seen, but no public program serves a language model on them."""

from __future__ import annotations

from typing import ClassVar

from launcher.devices.base import DevicePlugin, Resource, indexed_nodes


class Pim(DevicePlugin):
    kind = "pim"
    label = "PIM device"
    looked_for: ClassVar[str] = "UPMEM ranks /dev/dpu_rank0, /dev/dpu_rank1, …"

    def detect(self) -> tuple[Resource, ...]:
        return tuple(Resource(number, self.kind) for number in indexed_nodes("/dev", "dpu_rank*"))
