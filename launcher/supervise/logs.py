"""The engine's logs: a file for each start, cut by size, the oldest removed."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

_KEPT = 10
_TAIL_BYTES = 32768
_LINE_LIMIT = 400


def next_file(folder: Path) -> Path:
    """A new file for one start; the oldest go when there are many."""
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = sorted(folder.glob("[0-9]*.log"))
    for old in kept[: max(0, len(kept) - _KEPT + 1)]:
        old.unlink()
        _older(old).unlink(missing_ok=True)
    number = int(kept[-1].stem) + 1 if kept else 1
    return folder / f"{number:06d}.log"


def newest(folder: Path) -> Path:
    """Return the log of the last start in `folder`; a path that does not exist where there was none."""
    return max(folder.glob("[0-9]*.log"), default=folder / "none")


def rotate(log: Path, most_bytes: int) -> None:
    """Move what is in `log` to the file beside it that ends in .1, in place of what was there, if it is more than that.

    The engine has `log` open, and goes on at its new end; a line that it writes in between may be lost.
    """
    if size(log) > most_bytes:
        with contextlib.suppress(OSError):  # a disk that is full: what is there is worth more than what may come
            shutil.copyfile(log, _older(log))
            os.truncate(log, 0)


def size(log: Path) -> int:
    """Return the size of `log` in bytes; 0 where it cannot be read."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def tail(log: Path) -> list[str]:
    """Return the last lines of `log`, cut to what a terminal can stand; [] where it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return ["".join(c for c in line[-_LINE_LIMIT:] if c.isprintable()) for line in lines]


def _older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")
