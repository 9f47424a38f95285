"""The host's processor, as much of it as this process may use."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from launcher.devices.base import Capability, HostDevices, Resource, Survey, known
from launcher.devices.cgroups import limits, numbers
from launcher.devices.host import indexed_nodes, number

#: instructions that decide which builds run, and how fast; named as in /proc/cpuinfo on x86 and on Arm
_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


class Cpu(HostDevices):
    """The host's processor: one device, which deployments share."""

    kind = "cpu"
    label = "processor"
    looked_for: ClassVar[str] = "the processor"
    shared = True

    def _look(self) -> Survey:
        """Return one resource: the whole processor.

        `cores` counts the processors that this process may run on, after affinity, cpusets and quotas; `memory_bytes`
        is the memory that it may use.
        """
        limit = limits(self.root)
        memory = _fields(self.root / "proc/meminfo")
        total = _bytes(memory.get("MemTotal")) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = [size for size in (_bytes(memory.get("MemAvailable")), limit.available_bytes) if size is not None]
        info = _fields(self.root / "proc/cpuinfo")
        numa = len(indexed_nodes(self.root / "sys/devices/system/node", "node*"))
        attributes: dict[str, Any] = {
            "model_name": info.get("model name"),
            "cores": self._cores(limit.cpus, limit.processors),
            "memory_bytes": min(total, limit.memory_bytes or total),
            "available_bytes": min(available) if available else None,
            "machine_bytes": total if limit.memory_bytes and limit.memory_bytes < total else None,
            "quota": limit.processors,
            "numa_nodes": numa or None,
        }
        flags = set((info.get("flags") or info.get("Features") or "").split())
        return Survey((Resource(0, self.kind, known(attributes), frozenset(flags.intersection(_INSTRUCTIONS))),))

    def _cores(self, cpuset: frozenset[int] | None, quota: float | None) -> int:
        allowed = numbers(_fields(self.root / "proc/self/status").get("Cpus_allowed_list"))
        allowed = allowed or frozenset(os.sched_getaffinity(0))
        cores = len(allowed & cpuset) or len(allowed) if cpuset else len(allowed)
        return max(1, min(cores, math.ceil(quota))) if quota else cores

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the types that a processor computes in, without limits."""
        return Capability(dtype=("float32", "bfloat16"))


def _fields(file: Path) -> Mapping[str, str]:
    """Return `name: value` lines; the first value if a name comes again, as in a block per processor."""
    found: dict[str, str] = {}
    try:
        with file.open(errors="replace") as stream:
            lines = stream.read(1 << 20).splitlines()
    except OSError:
        return found
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), " ".join(value.split()))
    return found


def _bytes(said: str | None) -> int | None:
    """Return the bytes of `24626568 kB`; None for anything else."""
    match = re.fullmatch(r"([0-9]{1,15}) kB", said or "", re.ASCII)
    return (number(match[1]) or 0) * 1024 if match else None
