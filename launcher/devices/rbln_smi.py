"""Rebellions' own report of its NPUs, `rbln-smi -g -j`, and the older `rbln-stat`.

Its JSON changed from release to release: numbers come as such or in words, memory in bytes but that of processes as
"3.5GiB", and keys come and go. Nobody has run this against an NPU; the shapes are those that the vendor's own and
others' readers accept.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.devices.host import ask, find_tool, number, printable

#: folders where the vendor's own library looks, in its order; after them comes the PATH
FOLDERS = ("/usr/bin", "/run/rbln/driver/usr/bin", "/host/usr/bin", "/host/driver/usr/bin", "/usr/local/bin")
NAMES = ("rbln-smi", "rbln-stat")

#: seconds for all attempts together; less than `LOOK_LIMIT_S`, which bounds the whole look
_LIMIT_S = 4.0
_MIB = 1 << 20
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Npu:
    """One device as the tool reports it; None is not reported."""

    node: str  #: "rbln0"
    number: int | None  #: the tool's own number, which on some cards is not that of the node
    product: str | None = None
    uuid: str | None = None
    serial: str | None = None
    status: str | None = None
    firmware: str | None = None
    pci: str | None = None
    numa: int | None = None
    group: int | None = None
    used_bytes: int | None = None
    memory_bytes: int | None = None
    holders: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The tool's whole answer; `driver` is None if it is not reported."""

    driver: str | None
    npus: Mapping[str, Npu]  #: node → device


def report(root: Path) -> tuple[Report | None, str]:
    """Return the answer of the tool below `root`, or None and the reason."""
    tool = next((found for name in NAMES if (found := find_tool(root, FOLDERS, name))), None)
    if tool is None:
        return None, f"there is no rbln-smi (in {', '.join(FOLDERS)} or on the PATH)"
    deadline = time.monotonic() + _LIMIT_S
    why = ""
    for flags in (["-g", "-j"], ["-j"]):  # older ones do not know -g
        said = ask([str(tool), *flags], max(0.5, deadline - time.monotonic()))
        if not said.failed and (parsed := parse(said.out)):
            return parsed, ""
        why = f"{tool} {' '.join(flags)} {said.failed or _unreadable(said.out, said.code)}"
        if said.failed:
            break
    return None, why


def parse(said: bytes) -> Report | None:
    """Return the report in `said`, which may have other words before and after it; None if there is none."""
    words = said.decode(errors="replace")
    start = words.find("{")
    try:
        data, _ = json.JSONDecoder().raw_decode(words, start) if start >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    devices = data.get("devices") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(devices, list):
        return None
    npus = [npu for entry in devices if isinstance(entry, dict) and (npu := _npu(entry))]
    contexts = data.get("contexts")
    holders = _holders(contexts if isinstance(contexts, list) else [], npus)
    return Report(
        printable(data.get("KMD_version")),
        {npu.node: replace(npu, holders=holders.get(npu.node, {})) for npu in npus},
    )


def _npu(entry: Mapping[str, Any]) -> Npu | None:
    own = number(entry.get("npu"))
    node = printable(entry.get("device")) or (f"rbln{own}" if own is not None else None)
    if node is None:
        return None
    memory, pci = _mapping(entry.get("memory")), _mapping(entry.get("pci"))
    total, used = number(memory.get("total")), number(memory.get("used"))
    if total is not None and total < _MIB:  # not bytes, whatever it is
        total = used = None
    return Npu(
        node=node.removeprefix("/dev/"),
        number=own,
        product=printable(entry.get("name")),
        uuid=_uuid(entry.get("uuid")),
        serial=printable(entry.get("sid")),
        status=printable(entry.get("status")),
        firmware=printable(entry.get("fw_ver")),
        pci=printable(pci.get("bus_id")),
        numa=number(pci.get("numa_node")),
        group=number(entry.get("group_id")),
        used_bytes=used,
        memory_bytes=total,
    )


def _holders(contexts: Sequence[Any], npus: Sequence[Npu]) -> Mapping[str, dict[int, int]]:
    """Return node → pid → bytes.

    Where several devices have the number that a process names, each may be its own: the process counts as on all of
    them, with 0 for the unknown bytes.
    """
    found: dict[str, dict[int, int]] = {}
    for context in contexts:
        if not isinstance(context, dict) or (pid := number(context.get("pid"))) is None:
            continue
        own = number(context.get("npu"))
        places = [npu.node for npu in npus if npu.number == own and own is not None]
        held = _size(context.get("memalloc", context.get("memory"))) if len(places) == 1 else 0
        for node in places:
            holders = found.setdefault(node, {})
            holders[pid] = holders.get(pid, 0) + held
    return found


def _size(said: object) -> int:
    """Return the bytes of "3.5GiB" or 123; 0 if unknown."""
    if (plain := number(said)) is not None:
        return plain
    match = _SIZE.fullmatch(said.strip()) if isinstance(said, str) else None
    if not match:
        return 0
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _uuid(said: object) -> str | None:
    """Return the UUID; None for zeros, which some cards report and which name nothing."""
    uuid = printable(said)
    return uuid if uuid and uuid.strip("0-") else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _unreadable(out: bytes, code: int | None) -> str:
    last = next((line for line in reversed(out.decode(errors="replace").splitlines()) if printable(line)), "")
    ending = f"exited {code} and " if code else ""
    shown = (printable(last) or "")[:80]
    return f"{ending}said nothing that can be read{f': {shown}' if shown else ''}"
