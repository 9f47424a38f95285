"""Processes by pid, as /proc lists them. A pid identifies one only together with its start and the boot's id."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LIMIT_BYTES = 2 << 20  #: the kernel's limit for argv and variables together, with the usual stack


def is_the_same(pid: int, started: int) -> bool:
    """Return whether the process `pid` runs and was started at `started` (clock ticks from boot)."""
    try:
        return started == start_ticks(pid) and is_alive(pid)
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Return whether a process of this pid runs; a zombie does not."""
    try:
        return _fields(pid)[0] not in (b"Z", b"X")
    except OSError:
        return False


def boot_id() -> str:
    """Return the kernel's id of this boot: another one after every restart of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """Return the start of the process `pid`, in clock ticks from boot. Raises `OSError` if there is none."""
    return int(_fields(pid)[19])


def name(pid: int) -> str:
    """Return the name of the process `pid`, which it may have set itself; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def variable(pid: int, name: str) -> str | None:
    """Return the variable `name` that the process `pid` was started with; None if it is unset or cannot be read."""
    _, _, rest = (b"\0" + _beginning(pid, "environ")).partition(f"\0{name}=".encode())
    value, end, _ = rest.partition(b"\0")
    return os.fsdecode(value) if end else None


def command(pid: int) -> bytes:
    """Return the argv that the process `pid` was started with, each word ended by a NUL; empty if it cannot be read."""
    return _beginning(pid, "cmdline")


def _beginning(pid: int, file: str) -> bytes:
    """Return at most `_LIMIT_BYTES` of a file of /proc/PID: the process owns that memory and may make it any size."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/{file}").open("rb") as stream:
        return stream.read(_LIMIT_BYTES)
    return b""


def _fields(pid: int) -> list[bytes]:
    """Return /proc/PID/stat from its third field. The name in the second may hold spaces, brackets and no UTF-8."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
