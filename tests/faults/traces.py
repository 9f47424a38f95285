"""What an engine leaves on a machine, looked for without asking the launcher."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

#: a process by pid and start: pids are reused
Process = tuple[int, float]


def processes(run_dir: Path) -> dict[Process, str]:
    """Every live process that carries the deployment's mark or stands in its folder, and its command line."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get("RMLAUNCH_DEPLOYMENT") == str(run_dir)
            stands = Path(process.cwd().removesuffix(" (deleted)")).is_relative_to(run_dir)
            if (marked or stands) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid, process.create_time()] = " ".join(process.cmdline())
    return found


def alive(process: Process) -> bool:
    pid, created = process
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid)
        return found.create_time() == created and found.status() != psutil.STATUS_ZOMBIE
    return False


def taken(ports: Iterable[int]) -> list[str]:
    """Those that no server could bind now."""
    found = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(f"port {port}")
    return found
