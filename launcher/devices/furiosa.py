"""FuriosaAI RNGD NPUs. Nobody has run this against an NPU: names are those of the vendor's tools at SDK 2026.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from launcher.devices.base import GIB, DevicePlugin, Resource, indexed_nodes


class Furiosa(DevicePlugin):
    kind = "furiosa"
    label = "Furiosa NPU"
    looked_for: ClassVar[str] = "device nodes /dev/rngd/npu0mgmt, /dev/rngd/npu1mgmt, …"
    products: ClassVar[Mapping[str, int]] = {"RNGD": 48 * GIB}
    assumed_product = "RNGD"

    root: ClassVar[str] = "/dev/rngd"

    def detect(self) -> tuple[Resource, ...]:
        # The driver of this one product makes these nodes.
        attributes = {"product": "RNGD", "memory_bytes": self.products["RNGD"]}
        return tuple(Resource(number, self.kind, attributes) for number in indexed_nodes(self.root, "npu*mgmt"))

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        return (self.root,)
