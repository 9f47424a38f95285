"""A supervisor process that waits for its orders.

Starting Python and importing takes it as long as planning takes us, so it is started first: the two overlap.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TextIO

from engines.errors import DeploymentError
from launcher.inheritance import MARKER, SUPERVISOR

#: not `-m`: that would import from whatever folder the user stands in
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from launcher.supervise.supervisor import main; main()"


class Spawned:
    """The process and our end of its control socket; it ends by itself when that end is closed without orders."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env={**{name: value for name, value in os.environ.items() if name != MARKER}, SUPERVISOR: "1"},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
            )

    def give(self, orders: bytes, lock: TextIO, output: int) -> None:
        """Hand over one line of orders, the deployment's lock, and where its own words go from now on."""
        try:
            socket.send_fds(self.control, [b"\n"], [lock.fileno(), output])
            self.control.sendall(orders + b"\n")
        except OSError as exc:
            raise DeploymentError(
                f"the supervisor ended before it had its orders (exit {self.process.poll()})"
            ) from exc

    def detach(self) -> None:
        """Let go of one that goes on without us."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # wakes whoever reads it
        self.control.close()
        self.process.returncode = 0  # or Popen would complain that nobody waits for it

    def close(self) -> None:
        """Let go, and wait until it has ended: at once without orders, after a sweep with them."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=5)
        self.control.close()
