"""The processes that hold a lock, as the kernel lists open files: a pid once written down may be another's now."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import procfs
from launcher.masking import mask_argv

_COMMAND_LIMIT = 80
#: as the kernel calls a lock, in the line of an open file's fdinfo
_OWN = "WRITE"
_ANY = "FLOCK"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, other than ours, that has the lock of `file`; several share one that was handed on."""

    pid: int
    file: Path

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it holds the lock still."""
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            process = os.pidfd_open(self.pid)
            try:
                # Looked at once more: from here on it cannot be another process.
                if _holds(self.pid, self.file, _OWN):
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)


def holders(file: Path, how: str = _OWN) -> list[Holder]:
    """Find whoever has `file` locked (flock), as far as this user may see.

    With the `how` that is the default, whoever has it alone: who only asks whether it is free shares it for a moment.
    """
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [Holder(pid, file) for pid in numbers if pid != os.getpid() and _holds(pid, file, how)]


def described(file: Path) -> str:
    """Say who keeps others from the lock of `file`, by sharing it too."""
    found = holders(file, _ANY)
    return ", ".join(process(holder.pid) for holder in found) or "a process that this user may not see"


def process(pid: int) -> str:
    """Say which process that is, secrets of its command masked."""
    words = procfs.command(pid).decode(errors="replace").split("\0")[:-1]
    command = "".join(c if c.isprintable() else "?" for c in shlex.join(mask_argv(tuple(words))))
    return f"pid {pid} ({command[:_COMMAND_LIMIT] or 'unknown command'})"


def _holds(pid: int, file: Path, how: str) -> bool:
    try:
        wanted = file.stat()
        return any(_is_locked(pid, number, how) for number in _open_files(pid, file.name, wanted))
    except OSError:
        return False


def _open_files(pid: int, name: str, wanted: os.stat_result) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in the meantime
            # By its name first: to look at any file may take for ever, where its server is gone.
            if os.readlink(link).endswith(f"/{name}") and os.path.samestat(link.stat(), wanted):  # noqa: PTH115
                yield link.name


def _is_locked(pid: int, number: str, how: str) -> bool:
    return any(line.startswith("lock:") and {"FLOCK", how} <= {*line.split()}
               for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines())  # fmt: skip
