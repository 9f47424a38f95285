"""The connections of a supervisor: lines of JSON, and nobody who does not read may keep it waiting."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

from launcher.supervise import protocol

SOCKET = "control.sock"  #: in the deployment's folder, which is its user's alone
_REQUEST_LIMIT = 1 << 16


class Client:
    """A connection of somebody who asks: the owner of the deployment, or a command."""

    def __init__(self, connection: socket.socket, selector: selectors.BaseSelector, follows: bool = False) -> None:
        self.follows = follows  #: hears each change of state, without asking again
        self._connection = connection
        self._selector = selector
        self._incoming = b""
        self._sending = b""  #: the rest of what is on its way
        self._news: bytes | None = None  #: the newest after it; older ones no longer matter
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, self)

    def hear(self) -> list[object] | None:
        """Return the ops that were asked for since; None when it is gone, or speaks another language."""
        try:
            data = self._connection.recv(_REQUEST_LIMIT)
        except BlockingIOError:
            return []
        except OSError:  # reset: it was killed before it had read everything
            return None
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        if not data or len(self._incoming) > _REQUEST_LIMIT:
            return None
        try:
            return [protocol.requested(line) for line in lines]
        except ValueError:
            return None

    def answer(self, line: bytes) -> None:
        """Send `line`, all of it and in its turn."""
        self._sending += line
        self.flush()

    def tell(self, news: bytes) -> None:
        """Send the line of `news`, unless newer ones come before the socket takes it."""
        self._news = news
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        with contextlib.suppress(OSError):  # gone: that is noticed where it is heard
            while self._sending or self._news:
                if not self._sending:
                    self._sending, self._news = self._news or b"", None
                try:
                    self._sending = self._sending[self._connection.send(self._sending) :]
                except BlockingIOError:
                    break
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._sending else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(self._connection, events, self)

    def finish(self, timeout_s: float) -> None:
        """Send the last word, and wait `timeout_s` for a client that is slow to read it."""
        self._connection.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            self._connection.sendall(self._sending + (self._news or b""))

    def close(self) -> None:
        """Forget what was not sent yet, and give the socket back."""
        self._sending, self._news = b"", None
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._connection)
        self._connection.close()


def listen(folder: Path, name: str = SOCKET) -> socket.socket:
    """Return the socket that commands reach a supervisor by. The last one has no owner: the folder's lock is ours."""
    listener = socket.socket(socket.AF_UNIX)
    with _short(folder, name) as path:
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
    listener.listen()
    listener.setblocking(False)
    return listener


def connect(folder: Path, timeout_s: float, name: str = SOCKET) -> socket.socket:
    """Connect to the supervisor of the deployment in `folder`. Raises `OSError` where nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        with _short(folder, name) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _short(folder: Path, name: str) -> Iterator[str]:
    """Yield the socket's path in a form that is never too long: Unix sockets end at 107 bytes."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
