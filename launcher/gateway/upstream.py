"""The connections to deployments' servers: HTTP/1.1, one request at a time on each."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import httptools

from launcher.gateway.heads import Head
from launcher.gateway.routing import Idle, Upstream

_HEADERS_LIMIT = 1000
#: bytes in a row that are no body, at most: heads, and what stands between chunks and after them
_DRY_LIMIT = 1 << 16
#: answers of 100 and the like before the one that counts, at most
_INFORMATION_LIMIT = 8
#: the client's headers that a server behind us gets
_PASSED_ON = frozenset({b"traceparent", b"tracestate", b"x-request-id"})

log = logging.getLogger(__name__)


def passed_on(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the lines of a client's headers that a server behind us gets."""
    if _PASSED_ON.isdisjoint(headers):
        return b""
    return b"".join([b"%b: %b\r\n" % (name, headers[name]) for name in _PASSED_ON if name in headers])


class Receiver(Protocol):
    """Whoever has sent a request on a connection, and takes what comes back.

    `on_whole`, `on_end`, `on_lost`, `on_unreadable` or `crash` is the last call; the connection has let go of its
    receiver by then.
    """

    def on_head(self, connection: Connection, status: int) -> None:
        """The head of the answer has come."""

    def on_body(self, body: bytes) -> None:
        """A piece of the answer's body has come."""

    def on_end(self, connection: Connection, *, reusable: bool) -> None:
        """The answer has come to its end. `reusable`: the server takes another request on the connection."""

    def on_whole(self, connection: Connection, body: bytes) -> None:
        """Called instead of on_head, on_body and on_end where a whole 200 answer came in one read."""

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The connection has ended before the answer did."""

    def on_unreadable(self, reason: str) -> None:
        """The answer is no HTTP, and the connection is closed."""

    def crash(self) -> None:
        """A bug of ours has met the answer, and is in the log."""


class Dialer(Protocol):
    """The part of the server that `connect` needs."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]

    def tls(self) -> ssl.SSLContext:
        """Return the settings for servers with https."""

    def spare_descriptors(self) -> None:
        """Close idle connections where there are so many that a new one might find no descriptor."""


class Connection(asyncio.Protocol):
    """A connection to a server; the request on it has a receiver, and on an idle one nothing may come."""

    __slots__ = ("_complete", "_dry", "_framed", "_good", "_headers", "_informed", "_kept", "_parser",
                 "_resting", "_status", "_unread", "_whole", "dry_since", "far_s", "on_header", "receiver",
                 "streams", "transport", "upstream")  # fmt: skip

    transport: asyncio.Transport  #: there before anybody gets to see the connection

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.receiver: Receiver | None = None
        self.streams = False  #: the answer is one of server-sent events
        self._headers: dict[bytes, bytes] = {}
        self.on_header = self._headers.__setitem__  # without a frame of Python's for each
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._status = 0  #: the last answer's; 0 before the first
        self._dry = self._informed = 0
        self.dry_since = 0.0  #: when a head began that has not come to its end; 0 for none
        self.far_s = 0.0  #: seconds that it took to connect
        self._framed = False  #: the head says where the body ends
        self._complete = False  #: the head has been read
        self._whole = False  #: the body has been read
        self._kept = False  #: the server keeps the connection
        self._resting = True  #: no answer has begun
        self._unread: Head | None = None  #: the head of what the parser gets now, where that is one whole answer
        self._good: Head | None = None  #: the head of the last good answer that came whole

    @property
    def fresh(self) -> bool:
        """True until something was answered on it."""
        return self._status == 0

    def close(self) -> None:
        """Close at once; a server that still works on an answer sees that nobody waits for it."""
        self.receiver = None
        self.transport.abort()

    # ------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        """Give the receiver what `data` says; without a receiver, close."""
        receiver = self.receiver
        if receiver is None or self._parser is None:
            self.close()  # an answer that nobody asked for
            return
        try:
            if self._resting:
                if self._good is not None and (body := self._good.body(data)) is not None:
                    self.receiver = None
                    receiver.on_whole(self, body)
                    return
                self._unread = Head.of(data)
                self._dry = self._informed = 0
            self._resting = False
            self._dry += len(data)
            self._parser.feed_data(data)
            if self.receiver is not receiver:  # it has let go of us in the middle of this
                return
            too_much = self._dry > _DRY_LIMIT or self._informed > _INFORMATION_LIMIT
            if too_much or len(self._headers) > _HEADERS_LIMIT:
                self._break("it sends headers without an end")
            elif self._whole:  # not within the parser: whoever has it next must not meet the rest of this
                self._whole = False
                self._resting = True
                self.dry_since = 0.0
                self.receiver = None
                receiver.on_end(self, reusable=self._kept)
            elif self._complete or not self._dry:  # how long a body takes is another limit's matter
                self.dry_since = 0.0
            elif not self.dry_since:
                self.dry_since = time.monotonic()
        except httptools.HttpParserUpgrade:
            self._break("it changes to another protocol, for which nobody has asked")
        except httptools.HttpParserCallbackError as exc:
            self._crash(receiver, exc.__context__)
        except httptools.HttpParserError as exc:
            self._break(f"what it answers is not HTTP: {exc}")
        except Exception as exc:  # noqa: BLE001  (one request's trouble, which is told, must not fell others)
            self._crash(receiver, exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, for which the end of the connection may be that of the answer."""
        receiver, self.receiver = self.receiver, None
        self._parser = None  # they hold each other
        if receiver is None:
            return
        try:
            if self._complete and not self._framed and exc is None:
                receiver.on_end(self, reusable=False)  # the end of the connection is that of the body
            else:
                receiver.on_lost(self, f"it closed the connection{': ' + str(exc) if exc else ''}")
        except Exception as bug:  # noqa: BLE001  (as above)
            self._crash(receiver, bug)

    def pause_writing(self) -> None:
        """Do nothing: a request that a server is slow to take is bounded, and waits in the transport."""

    def header(self, name: bytes) -> bytes:
        """Return a header of the answer, by its name as it is usually written; empty where there is none."""
        headers = self._headers
        found = headers.get(name) or headers.get(name.lower())
        if found is None:
            found = next((value for key, value in headers.items() if key.lower() == name.lower()), b"")
        return found

    # ----------------------------------------------------------------------------------------- httptools' callbacks

    def on_message_begin(self) -> None:
        """Begin with a new answer; one more than there are requests ends the connection."""
        if self._whole:  # one more answer than requests
            self._kept = False
            return
        self._headers.clear()
        self._complete = False

    def on_headers_complete(self) -> None:
        """Tell the receiver the status, but for 100 and the like."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._dry = 0
        if status < 200:
            self._informed += 1
        elif not self._whole:
            self._complete = True
            self._status = status
            self._framed = bool(self.header(b"Content-Length") or self.header(b"Transfer-Encoding"))
            self.streams = self.header(b"Content-Type").startswith(b"text/event-stream")
            if self.receiver is not None:
                self.receiver.on_head(self, status)

    def on_body(self, body: bytes) -> None:
        """Give the receiver a piece of the body."""
        self._dry = 0
        if self.receiver is not None and not self._whole:
            self.receiver.on_body(body)

    def on_message_complete(self) -> None:
        """Note that the answer is whole; the receiver hears of it when all data was parsed."""
        if not self._complete or self._parser is None:  # 100 Continue and its like
            return
        if not self._whole:
            self._whole = True
            self._kept = self._parser.should_keep_alive()
            if self._unread is not None and self._status == 200 and not self.streams:
                self._good = self._unread

    def _crash(self, receiver: Receiver, bug: BaseException | None) -> None:
        log.error("a bug: with an answer of %s:%d", self.upstream.host, self.upstream.port, exc_info=bug)
        self.close()
        receiver.crash()

    def _break(self, reason: str) -> None:
        receiver = self.receiver
        self.close()
        if receiver is not None:
            receiver.on_unreadable(reason)


def reuse(idle: list[Idle], upstream: Upstream) -> Connection | None:
    """Take a connection to `upstream` out of `idle`, and close those that are of no use; None where none is left."""
    while idle:
        connection = idle.pop()
        if (
            isinstance(connection, Connection)
            and connection.upstream is upstream
            and not connection.transport.is_closing()
        ):
            return connection
        connection.close()
    return None


async def connect(server: Dialer, upstream: Upstream, limit_s: float) -> Connection:
    """Return a new connection. Raises `OSError`, or `asyncio.TimeoutError` after `limit_s`."""
    began = server.clock()
    server.spare_descriptors()
    connecting = server.loop.create_connection(
        lambda: Connection(upstream), upstream.host, upstream.port, ssl=server.tls() if upstream.tls else None
    )
    _, connection = await asyncio.wait_for(connecting, limit_s)
    if connection.transport.is_closing():  # between its being made and our turn
        raise ConnectionResetError("it was closed at once")
    connection.far_s = server.clock() - began
    return connection
