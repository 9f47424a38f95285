"""Rebellions NPUs: ATOM (RBLN-CA*) and REBEL (RBLN-CR*).

Nobody has run this against an NPU: names and sizes are those of the vendor's own tools at SDK 0.12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from engines.rbln_sdk import NEWEST
from launcher.devices.base import GIB, DevicePlugin, Resource, indexed_nodes


class Rbln(DevicePlugin):
    kind = "rbln"
    label = "RBLN NPU"
    looked_for: ClassVar[str] = "device nodes /dev/rbln0, /dev/rbln1, …"
    products: ClassVar[Mapping[str, int]] = {
        "RBLN-CA12": 16 * GIB,
        "RBLN-CA22": 16 * GIB,
        "RBLN-CA25": 16 * GIB,
        "RBLN-CR03": 144 * GIB,
        "RBLN-CR13": 144 * GIB,
    }
    assumed_product = "RBLN-CA25"

    def detect(self) -> tuple[Resource, ...]:
        return tuple(Resource(number, self.kind) for number in indexed_nodes("/dev", "rbln*"))

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:
        # The SDK counts the nodes that are present: where rbln0 is missing, its 0 is rbln1.
        present = [resource.id for resource in found]
        positions = [present.index(number) if present else number for number in ids]
        # The newest SDK's name, which our environments pin; an engine on an older one adds its own (`rbln_sdk.SDKS`).
        return {NEWEST.visible_devices: ",".join(map(str, positions))}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        # Without /dev/rsd0 the runtime counts no devices at all.
        return (*(f"/dev/rbln{number}" for number in ids), "/dev/rsd0")
