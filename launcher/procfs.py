"""Processes by their numbers, as the kernel lists them. A pid names one together with its start and the boot's id."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LIMIT_BYTES = 2 << 20  #: as much as the kernel gives a program of words and variables, with the usual stack


def is_the_same(pid: int, started: int) -> bool:
    """Whether the process `pid` runs, and was started at `started` (clock ticks from boot)."""
    try:
        return started == start_ticks(pid) and is_alive(pid)
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs; one that has ended and waits to be noticed does not."""
    try:
        return _fields(pid)[0] not in (b"Z", b"X")
    except OSError:
        return False


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """Clock ticks from boot to the start of the process `pid`. Raises `OSError` where there is none."""
    return int(_fields(pid)[19])


def name(pid: int) -> str:
    """Return the name of the process `pid`, which it may have given itself; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def variable(pid: int, name: str) -> str | None:
    """Return the variable `name` that the process `pid` was started with; None where it has none, or is not seen."""
    _, _, rest = (b"\0" + _beginning(pid, "environ")).partition(f"\0{name}=".encode())
    value, end, _ = rest.partition(b"\0")
    return os.fsdecode(value) if end else None


def command(pid: int) -> bytes:
    """Return the words that the process `pid` was started with, each ended by a NUL; empty where it is not seen."""
    return _beginning(pid, "cmdline")


def _beginning(pid: int, file: str) -> bytes:
    """The first `_LIMIT_BYTES` of what is a part of the process's own memory, and as large as it likes."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/{file}").open("rb") as stream:
        return stream.read(_LIMIT_BYTES)
    return b""


def _fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from its third field. The name in the second may hold spaces and brackets, and be no UTF-8."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
