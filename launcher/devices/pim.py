"""Processing in memory. UPMEM's ranks can be seen, but no public program serves a language model on them."""

from __future__ import annotations

from typing import Any, ClassVar

from launcher.devices.base import Capability, HostDevices, Resource, Survey
from launcher.devices.host import indexed_nodes, number, text


class Pim(HostDevices):
    """UPMEM's ranks of processing units in memory; each rank is one device."""

    kind = "pim"
    label = "PIM device"
    looked_for: ClassVar[str] = "UPMEM ranks /dev/dpu_rank0, /dev/dpu_rank1, …"
    note: ClassVar[str] = "no public program serves a language model on processing in memory"

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Return the node of each rank."""
        return tuple(f"/dev/dpu_rank{number}" for number in ids)

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the integer types that the ranks compute in; they have neither KV cache nor streaming."""
        return Capability(support_kv_cache=False, support_streaming=False, dtype=("int8", "int32"),
                          optimized_for=("energy",))  # fmt: skip

    def _look(self) -> Survey:
        found = tuple(self._rank(own) for own in indexed_nodes(self.root / "dev", "dpu_rank*"))
        return Survey(found)

    def _rank(self, own: int) -> Resource:
        """Return one rank, with the values of its region in sysfs that UPMEM's own library reads too."""
        region = self.root / f"sys/class/dpu_rank/dpu_rank{own}/device"
        interfaces, per_interface, memory = (
            number(text(region / name)) for name in ("nb_real_ci", "nb_dpus_per_ci", "mram_size")
        )
        units = (interfaces or 0) * (per_interface or 0)
        attributes: dict[str, Any] = {"product": "UPMEM rank"}
        if units:
            attributes["cores"] = units
        if units and memory:
            attributes["memory_bytes"] = units * memory
        return Resource(own, self.kind, attributes)
