"""FuriosaAI RNGD NPUs. Nobody has run this against an NPU: the names are those of the vendor's tools at SDK 2026.4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from engines.base import ContainerSettings
from launcher.devices.base import GIB, Capability, HostDevices, Problem, Resource, Survey, known
from launcher.devices.host import indexed_nodes, number, pci_functions, printable, text
from launcher.devices.unbound import Card, unbound

_VENDOR = "1ed2"


class Furiosa(HostDevices):
    """FuriosaAI's NPUs: found by their nodes, described by sysfs and the vendor's library."""

    kind = "furiosa"
    label = "Furiosa NPU"
    looked_for: ClassVar[str] = "device nodes /dev/rngd/npu0mgmt, /dev/rngd/npu1mgmt, …"
    products: ClassVar[Mapping[str, int]] = {"RNGD": 48 * GIB}
    assumed_product = "RNGD"

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Return the folder that has the nodes of every card, whatever `ids` are."""
        return ("/dev/rngd",)

    def container(self, ids: tuple[int, ...], found: Sequence[Resource]) -> ContainerSettings:
        """Return settings with which every card is seen inside; the engine's --devices chooses among them.

        The driver wants io_uring, which Docker's seccomp profile forbids. No CDI device is given, because their names
        are not known for sure.
        """
        return ContainerSettings(
            nodes=self.nodes(ids),
            security=("seccomp=unconfined",),
            capabilities=("IPC_LOCK",),
            ulimits={"memlock": -1},
            ipc="host",
            env=self.visible_env(ids, found),
        )

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the types that the NPUs compute in and the vendor's goals, without limits."""
        return Capability(
            dtype=("bfloat16", "float8_e4m3fn", "int8"), optimized_for=("latency", "throughput", "energy")
        )

    def _look(self) -> Survey:
        present = indexed_nodes(self.root / "dev/rngd", "npu*mgmt")
        if not present:
            return Survey()
        reported, problem, versions = _library()
        found = tuple(self._resource(own, reported.get(own, {})) for own in present)
        drivers = {gpu.attributes["driver"] for gpu in found if "driver" in gpu.attributes}
        if len(drivers) == 1:
            versions = {"driver": drivers.pop(), **versions}
        return Survey(found, (problem,) if problem else (), versions)

    def _unusable(self, found: Survey) -> Sequence[Problem]:
        card = Card("Furiosa NPU", "/dev/rngd", "install FuriosaAI's driver and load it")
        return tuple(unbound(card, pci_functions(self.root, _VENDOR), bool(found.resources)))

    def _resource(self, own: int, reported: Mapping[str, Any]) -> Resource:
        place = self.root / f"sys/class/rngd_mgmt/rngd!npu{own}mgmt"
        told: dict[str, Any] = {
            "product": "RNGD",  # the driver of this one product makes these nodes
            "memory_bytes": self.products["RNGD"],
            "uuid": text(place / "device_uuid"),
            "serial": text(place / "device_sn"),
            "pci": text(place / "busname"),
            "firmware": text(place / "fw_version"),
            "driver": text(place / "version"),
            **self._memory(own),
        }
        attributes = known({**told, **reported})
        return Resource(own, self.kind, attributes, frozenset({"RNGD"}))

    def _memory(self, own: int) -> Mapping[str, int]:
        """Return the card's memory, whole and used, in bytes; {} if unknown.

        The source is `alloc_status` of the first core: hexadecimal bytes, which the card's cores share.
        """
        for place in _glob(self.root / "sys/class", f"rngd*/rngd!npu{own}pe0"):
            words = (text(place / "alloc_status") or "").replace(":", " ").replace("=", " ").split()
            told = dict(pairwise(words))
            total, used = number(told.get("dram_capacity"), 16), number(told.get("dram_usage"), 16)
            if total and used is not None and used <= total:
                return {"memory_bytes": total, "used_bytes": used}
        return {}


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(folder.glob(pattern))
    except OSError:
        return


def _library() -> tuple[Mapping[int, Mapping[str, Any]], Problem | None, Mapping[str, str]]:
    """Return the library's report of each card by its number, a problem if it failed, and its version.

    The library is furiosa_smi, or the older furiosa_smi_py. Neither is a requirement of ours: without them sysfs tells
    most of it.
    """
    name = next((name for name in ("furiosa_smi", "furiosa_smi_py") if find_spec(name)), None)
    if name is None:
        return {}, None, {}
    from importlib import import_module

    try:
        library = import_module(name)
        if name == "furiosa_smi_py":
            library.init()
        found = {own: told for device in library.list_devices() for own, told in _card(device)}
    except Exception as exc:  # noqa: BLE001  (a binary module's errors are its own)
        what = f"{name} cannot say anything of the Furiosa NPUs: {exc}"
        return {}, Problem(what, "see what furiosa-smi says", blocks=False), {}
    return found, None, {name: _version(name)}


def _card(device: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    info = _call(device, "device_info") or device  # only the older library has a `device_info`
    own = number((printable(_call(info, "name") or _call(info, "device_name")) or "").removeprefix("npu"))
    if own is None:
        return
    cores = _call(device, "core_status")
    states = {str(state).rpartition(".")[2].lower() for state in cores.values()} if isinstance(cores, dict) else set()
    numa = _call(info, "numa_node")
    told = {
        "uuid": printable(_call(info, "uuid")),
        "serial": printable(_call(info, "serial")),
        "pci": printable(_call(info, "bdf")),
        "firmware": printable(str(_call(info, "firmware_version") or "")),
        "numa": number(numa),
        "cores": number(_call(info, "core_num")),
        "status": ("occupied" if "occupied" in states else "available") if states else None,
    }
    yield own, known(told)


def _call(thing: Any, method: str) -> Any:
    try:
        return getattr(thing, method)()
    except Exception:  # noqa: BLE001  (a card may not know the answer; others are still asked)
        return None


def _version(module: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "unknown"
