"""Make folders and files whole or not at all, whichever process is killed, and lock them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from engines.base import DeploymentError
from launcher import trees
from launcher.procfs import is_alive, start_ticks

#: name of a file that `write_text` has not finished
_PARTIAL = re.compile(r"\..+\.json\.(?P<pid>\d+)(-(?P<started>\d+))?")


@contextmanager
def made_once(target: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path | None]:
    """Yield an empty folder beside `target` to fill; it becomes `target` when the block ends without an error.

    Yield None if `target` exists already. Blocks while another process makes the same target, after calling `on_wait`.
    The lock dies with its holder; a killed holder's unfinished folder is removed.
    """
    if target.exists():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock"), on_wait):
        if target.exists():
            yield None
            return
        for stale in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
            trees.remove(stale)
        # A name of its own: a program that outlives its killed launcher may still be writing to the stale one.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        partial.chmod(0o755)
        try:
            yield partial
            partial.rename(target)
        except BaseException:
            trees.remove(partial)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in one step: readers see the old text or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{_started(os.getpid())}")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("x") as stream:  # never through a link
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Remove the unfinished files of `write_text` calls into `folder` whose process was killed."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if (found := _PARTIAL.fullmatch(entry.name)) and not _goes_on(int(found["pid"]), found["started"]):
                Path(entry).unlink(missing_ok=True)


def _goes_on(pid: int, started: str | None) -> bool:
    """Return whether that very process still runs; `started` None (an older version's file) compares the pid alone."""
    now = _started(pid)
    return now is not None and started in (None, now)


def _started(pid: int) -> str | None:
    """Return the process's start as clock ticks from boot, or None if it has ended."""
    with contextlib.suppress(OSError):
        return str(start_ticks(pid)) if is_alive(pid) else None
    return None


def version(path: Path) -> tuple[int, int] | None:
    """Return a value that changes with every `write_text` (mtime and inode), or None if the file does not exist."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_mtime_ns, now.st_ino


def open_lock(path: Path) -> TextIO:
    """Open `path` to lock it. Follows no link, and does not block on a FIFO.

    Raises `OSError` if it cannot be opened, and `DeploymentError` if it is no regular file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_CREAT
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            raise _no_lock(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock(path)
    return os.fdopen(descriptor, "r+")


def _no_lock(path: Path) -> DeploymentError:
    return DeploymentError(f"cannot lock {path}: it is not a regular file; remove it")


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs; call `on_wait` before waiting for another holder."""
    with open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
