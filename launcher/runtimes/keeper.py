"""The orders of a detached deployment, kept for its next supervisor: in a sealed file that is in memory alone.

Nobody can change a sealed file, and this one lies in no folder that a container could see. The engine's own process
holds it open, or, where that is in a container, a keeper: a process on the host that does nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from engines.base import DeploymentError
from launcher.inheritance import MARKER
from launcher.procfs import start_ticks, variable

_NAME = "rmlaunch"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

#: how many of its open files are looked at; the kernel lists them from the lowest number on, so that what a program was
#: given at its start is among them, and it may have opened a million more
_FIRST = 1000

_FOR_EVER_S = "2147483647"
_ENDED_S = 5.0  #: for the kernel, to end a process that was killed


@contextmanager
def in_memory(orders: bytes | None) -> Iterator[tuple[int, ...]]:
    """Yield the descriptor of a sealed file with `orders`, to be inherited; none where `orders` is None.

    The file ends with the last process that has it open.
    """
    if orders is None:
        yield ()
        return
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(orders)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield (descriptor,)
    finally:
        os.close(descriptor)


def read(pid: int) -> bytes | None:
    """Return what the process `pid` keeps; None where it keeps nothing, or has ended."""
    for descriptor in _kept_by(pid):
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    return None


def _kept_by(pid: int) -> Iterator[int]:
    """Open each file in memory of our name that the process `pid` was given, for as long as it is looked at."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in islice(entries, _FIRST):
            with contextlib.suppress(OSError):  # closed in the meantime
                if str(Path(entry).readlink()).startswith(f"/memfd:{_NAME}"):
                    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    try:
                        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # an error for a file that only bears the name
                        yield descriptor
                    finally:
                        os.close(descriptor)


def start(run_dir: str, orders: bytes) -> tuple[int, int]:
    """Start a process that holds `orders` open; returns its pid and its start in clock ticks from boot.

    Raises `DeploymentError` where it cannot be started.
    """
    program = shutil.which("sleep") or "sleep"
    with in_memory(orders) as kept:
        try:
            process = subprocess.Popen(
                (program, _FOR_EVER_S),
                cwd="/",
                env={MARKER: run_dir},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=kept,
                start_new_session=True,
            )
        except OSError as exc:
            raise DeploymentError(f"could not start {program}, which keeps a container's orders: {exc}") from exc
    process.returncode = 0  # it outlives us, so that Popen must not wait for it
    return process.pid, start_ticks(process.pid)


def end(pid: int, started: int) -> None:
    """Kill the process `pid` that was started at `started`, and wait until it has ended; another one is left alone."""
    with contextlib.suppress(OSError):  # it has ended before
        descriptor = os.pidfd_open(pid)
        try:
            if start_ticks(pid) == started:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], _ENDED_S)
                os.waitpid(pid, os.WNOHANG)  # reaps a child of ours; an error for any other process
        finally:
            os.close(descriptor)


def end_all(run_dir: str) -> None:
    """Kill every process of the deployment whose folder is `run_dir` that holds its orders."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                if variable(pid, MARKER) == run_dir and any(True for _ in _kept_by(pid)):
                    end(pid, start_ticks(pid))
