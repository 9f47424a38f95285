"""Whose the files are in folders that every program of the machine shares, /dev/shm and /tmp.

Their names tell nobody's, and another checkout's tests or another user's engines make some at the same time. The kernel
tells root which process makes each (fanotify). To others it does not: for them everything new counts that nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from launcher.inheritance import MARKER
from launcher.procfs import variable

SHARED = (Path("/dev/shm"), Path("/tmp"))

#: Java's folder for all programs of a user
_OF_ALL = "hsperfdata_"

# linux/fanotify.h
_CLOSE_ON_EXEC, _NO_WAIT = 0x1, 0x2
_REPORT_FOLDER_AND_NAME = 0x400 | 0x800
_ADD = 0x1
_MADE, _MOVED_HERE, _FOLDERS_TOO = 0x100, 0x80, 0x40000000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  #: length, version, reserved, length of this, mask, descriptor, pid
_NAME_AFTER = struct.Struct("=BxHQIi")  #: kind, length, file system, length of the handle that follows, its kind


class Makers:
    """Notes whose each file or folder is that appears in one of `folders` from now on."""

    def __init__(self, folders: tuple[Path, ...] = SHARED) -> None:
        self._folders = folders
        self._owners: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._before = _untold()
        self._events = [_events_of(folder) for folder in folders] if os.geteuid() == 0 else []
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Makers:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self._thread.join(10)
        for descriptor in (self._ended, *self._events):
            os.close(descriptor)

    def left_by(self, run_dir: Path) -> list[str]:
        """What processes of the deployment with that run folder have made and what is there still."""
        if not self._events:
            return sorted(str(path) for path in _untold() - self._before if not _is_held(path))
        self._read()
        with self._lock:
            made = [path for path, owner in self._owners.items() if Path(owner).is_relative_to(run_dir)]
            made = [path for path in made if not path.name.startswith(_OF_ALL)]
        return sorted(str(path) for path in made if os.path.lexists(path))

    def _listen(self) -> None:
        """A maker must be asked whose it is before it ends."""
        while self._ended not in select.select([self._ended, *self._events], (), ())[0]:
            self._read()

    def _read(self) -> None:
        with self._lock:
            for events, folder in zip(self._events, self._folders, strict=True):
                with contextlib.suppress(BlockingIOError):
                    while said := os.read(events, 1 << 16):
                        for name, pid in _parsed(said):
                            self._owners[folder / name] = _owner(pid)


@cache
def makers() -> Makers:
    """Those of this run of the tests; the first call comes before the first server starts."""
    return Makers()


def _untold() -> set[Path]:
    """What is looked at where the kernel does not tell: memory, and what Triton is known to leave."""
    return {*Path("/dev/shm").iterdir(), *Path("/tmp").glob("python_env_*")}


def _events_of(folder: Path) -> int:
    """A descriptor that tells who makes what in `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    events = int(libc.fanotify_init(_CLOSE_ON_EXEC | _NO_WAIT | _REPORT_FOLDER_AND_NAME, os.O_RDONLY))
    wanted = ctypes.c_uint64(_MADE | _MOVED_HERE | _FOLDERS_TOO)
    if events < 0 or libc.fanotify_mark(events, _ADD, wanted, _AT_FDCWD, bytes(folder)) < 0:
        raise OSError(ctypes.get_errno(), "fanotify", str(folder))
    return events


def _parsed(events: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at < len(events):
        length, *_, pid = _EVENT.unpack_from(events, at)
        assert length > _EVENT.size, "more was made than the kernel keeps for us"
        *_, handle, _ = _NAME_AFTER.unpack_from(events, at + _EVENT.size)
        name = events[at + _EVENT.size + _NAME_AFTER.size + handle : at + length]
        yield os.fsdecode(name.partition(b"\0")[0]), pid
        at += length


def _owner(pid: int) -> str:
    """Return the run folder of the deployment that a process is of: by its variables or those of the next one above it
    that has them, else by where it stands; some have written over theirs."""
    above = pid
    while above > 1:
        if owner := variable(above, MARKER):
            return owner
        above = _parent(above)
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink()).removesuffix(" (deleted)")
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_held(path: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(path) in (process / "maps").read_text():
                return True
            if any(descriptor.readlink() == path for descriptor in (process / "fd").iterdir()):
                return True
    return False
