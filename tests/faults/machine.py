"""Disks that are full and memory that is short, made for one test and taken away after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

_GROUPS = Path("/sys/fs/cgroup")


def not_here(why: str) -> NoReturn:
    """This machine cannot cause the fault: the cell says so, and on CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"not run here: {why}")
    pytest.skip(f"not run here: {why}")


def mount(folder: Path, megabytes: int) -> bool:
    """A small disk of its own for `folder`; False where this user may not mount."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    command = ["umount", "-l", str(folder)]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not one byte more fits on the disk of `folder` while the block runs."""
    if not folder.is_mount():
        not_here("a small disk could not be mounted; it takes root")
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            (folder / "one more").write_bytes(b"x")
        (folder / "one more").unlink()
        yield
    finally:
        filler.unlink()


@dataclass(frozen=True, slots=True)
class _Names:
    """What a version of control groups calls its files and their words."""

    root: Path
    limit: str
    use: str
    kills: str  #: the file that counts them
    own: str  #: memory that is in no file, in memory.stat


_VERSIONS = (
    _Names(_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "rss"),
    _Names(_GROUPS, "memory.max", "memory.current", "memory.events", "anon"),
)


class MemoryLimit:
    """A control group with little memory, for processes that are told by their pids."""

    def __init__(self, folder: Path, names: _Names, limit: int) -> None:
        self.folder = folder
        self._names = names
        self._limit = limit
        self._set(limit)

    def is_hit_by(self, pids: Iterable[int]) -> bool:
        """Whether the kernel has ended a process for it; `pids` are held from now on.

        At the limit it takes the pages of programs away, which read them again at once, and that can go on for
        minutes: so from there on no room is left for them.
        """
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                (self.folder / "cgroup.procs").write_text(str(pid))
        if int(self._read(self._names.use)) > 0.95 * self._limit:
            self._set(self._count("memory.stat", self._names.own))
        return self._count(self._names.kills, "oom_kill") > 0

    def _set(self, limit: int) -> None:
        with contextlib.suppress(OSError):  # busy: the next time
            (self.folder / self._names.limit).write_text(str(limit))

    def _count(self, file: str, word: str) -> int:
        words = self._read(file).split()
        return int(words[words.index(word) + 1])

    def _read(self, file: str) -> str:
        return (self.folder / file).read_text()


@contextlib.contextmanager
def limited_memory(megabytes: int) -> Iterator[MemoryLimit]:
    """A control group of its own; what is still in it after the block is killed."""
    limit = _limited(megabytes << 20)
    if limit is None:
        not_here("no control group for memory could be made; it takes root")
    try:
        yield limit
    finally:
        folder, deadline = limit.folder, time.monotonic() + 5
        while folder.exists():
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):  # its last process may still be ending
                folder.rmdir()
            assert time.monotonic() < deadline, f"{folder} could not be removed"
            time.sleep(0.05)


def _limited(limit: int) -> MemoryLimit | None:
    for names in _VERSIONS:
        folder = names.root / f"rmlaunch-faults-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / names.limit).exists():  # else it is a folder like any other
            return MemoryLimit(folder, names, limit)
        folder.rmdir()
    return None
