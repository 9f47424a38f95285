"""A client's connection: requests read and bounded, answers written. HTTP/1.1, one request after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from launcher.gateway.errors import Failure
from launcher.gateway.heads import Head

if TYPE_CHECKING:
    from launcher.gateway.server import Server
    from launcher.gateway.table import KeyState

_HEAD_LIMIT = 1 << 16
_HEADERS_LIMIT = 100
#: headers that would mean two things
_ONCE = frozenset({b"host", b"authorization", b"content-length", b"transfer-encoding"})
#: headers that announce a body
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
#: further requests that a client sends before it has its answer, and the bytes of their bodies
_AHEAD, _AHEAD_BYTES = 64, 1 << 16
#: bytes that are read and forgotten after a refusal, so that a client that still sends gets to read it
_LINGER_BYTES = 64 << 20

_REASONS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

JSON = "application/json"


@dataclass(slots=True)
class Request:
    """All of it but the body. One that was let in is used again for the next with the same head."""

    method: str
    path: str  #: without its query, which nothing here has
    headers: dict[bytes, bytes]  #: by their names in lower case
    keep_alive: bool
    chunks: bool  #: the client knows chunked answers, which came with HTTP/1.1
    extra: bytes = b""  #: lines of headers that its answer has in any case
    passed_on: bytes = b""  #: lines of headers that a server behind us gets
    asker: KeyState | None = None  #: who has been let in with it


class Handler(Protocol):
    """Who answers a request that takes a while."""

    def client_gone(self) -> None: ...
    def pause(self) -> None:
        """The client does not read as fast as it is told."""

    def resume(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    __slots__ = ("_ahead", "_body", "_closing", "_head", "_head_read", "_headers", "_let_in", "_lingered", "_parser",
                 "_refused", "_request", "_server", "_size", "_unread", "_url", "handler", "idle_since",
                 "paused_since", "reading_since", "transport")  # fmt: skip

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.handler: Handler | None = None
        self._request: Request | None = None  #: the one that is being answered
        self._ahead: deque[tuple[Request, bytes]] = deque()
        self._closing = False  #: after the answer
        self._refused = False  #: what comes now is not read any more
        self._lingered = 0
        self.idle_since: float | None = server.now
        self.reading_since: float | None = None
        self.paused_since: float | None = None
        self._head = 0  #: bytes that have come since the last request, until the head of the next has been read
        self._head_read = False
        self._unread: Head | None = None  #: of what the parser gets now, where that is one whole request
        self._let_in: tuple[Head, Request] | None = None  #: the last one that was
        self._begin()

    # ----------------------------------------------------------------------------------------------------- answers

    def answer(self, status: int, body: bytes, content_type: str = JSON, extra: bytes = b"") -> None:
        """The whole answer; `extra` are lines of headers."""
        request = self._request
        if request is None or self.transport is None:
            return
        if status == 200 and content_type is JSON:
            head = self._server.well
        else:
            first = _REASONS.get(status) or f"HTTP/1.1 {status} \r\n".encode()
            head = b"%b%bcontent-type: %b\r\n" % (first, self._server.date, content_type.encode())
        end = b"" if request.keep_alive and not self._closing else b"connection: close\r\n"
        said = b"" if request.method == "HEAD" else body
        self.transport.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b" % (head, request.extra, extra, len(body), end, said)
        )
        self._answered()

    def fail(self, failure: Failure) -> None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in failure.headers.items()).encode("latin-1", "replace")
        self.answer(failure.status, failure.body(), JSON, extra)

    def begin_stream(self, extra: bytes) -> None:
        request = self._request
        if request is None or self.transport is None:
            return
        if not request.chunks:
            self._closing = True
        framing = b"transfer-encoding: chunked\r\n" if request.chunks else b""
        if self._closing or not request.keep_alive:
            framing += b"connection: close\r\n"
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n" + self._server.date + b"content-type: text/event-stream\r\n"
            b"cache-control: no-cache\r\nx-accel-buffering: no\r\n" + request.extra + extra + framing + b"\r\n"
        )

    def chunk(self, data: bytes) -> None:
        if self._request is None or self.transport is None or not data:
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._request.chunks else data)

    def end_stream(self) -> None:
        if self._request is None or self.transport is None:
            return
        if self._request.chunks:
            self.transport.write(b"0\r\n\r\n")
        self._answered()

    def close(self) -> None:
        """At once, whatever is on its way."""
        if self.transport is not None:
            self.transport.abort()

    def too_slow(self) -> None:
        """It has begun a request, or reads the end of a refusal, and takes too long."""
        if self._refused:
            self.close()
        else:
            self._refuse(Failure(408, "the request did not come in time (gateway.request_timeout_s)"))

    def close_when_done(self) -> None:
        """After the answer that is on its way."""
        self._closing = True
        if self._request is None and self.transport is not None:
            self.transport.close()

    @property
    def busy(self) -> bool:
        return self._request is not None

    def _answered(self) -> None:
        request, self._request = self._request, None
        self.handler = None
        assert request is not None
        assert self.transport is not None
        if self._closing or not request.keep_alive:
            self._hang_up()
        elif self._ahead:
            self._server.soon(self._next)  # not here: an endless line of short requests would be an endless recursion
        elif self.reading_since is None:
            self.idle_since = self._server.now

    def _hang_up(self) -> None:
        """Close; a client that is still sending must first get to read the answer."""
        assert self.transport is not None
        if self._refused and self.transport.can_write_eof():
            self.transport.write_eof()
            self.reading_since = self._server.now
        else:
            self.idle_since = self._server.now  # a client that does not read the end is not waited for for ever
            self.transport.close()

    def _next(self) -> None:
        if self._request is None and self._ahead and self.transport is not None:
            self._serve(*self._ahead.popleft())
            if not self._ahead:
                self.transport.resume_reading()

    def _serve(self, request: Request, body: bytes) -> None:
        self._request = request
        self.idle_since = None
        self._server.serve(self, request, body)

    def let_in(self, request: Request, asker: KeyState) -> None:
        """What comes with the same head is let in, too, until settings change."""
        request.asker = asker
        if self._unread is not None:
            self._let_in = self._unread, request

    def forget(self) -> None:
        """Settings have changed: who may ask is to be found out again."""
        self._let_in = None

    # ------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._parser = self.transport = self._request = None
        self._ahead.clear()
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.close()
            return
        if self._parser is None:
            return
        self._unread = None
        if self.idle_since is not None:
            if self._let_in is not None and (body := self._let_in[0].body(data)) is not None:
                self._serve(self._let_in[1], body)
                return
            self._unread = Head.of(data)
        if not self._head_read:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
            if self._head > _HEAD_LIMIT and not self._head_read:
                raise _HEAD_TOO_LONG
        except Failure as failure:
            self._refuse(failure)
        except httptools.HttpParserUpgrade:
            # The request itself is answered as if it had not asked for it; in which protocol more comes is not known.
            self._refused = True
            self.close_when_done()
        except httptools.HttpParserCallbackError as exc:
            self._refuse(exc.__context__ if isinstance(exc.__context__, Failure) else _UNREADABLE)
        except httptools.HttpParserError as exc:
            self._refuse(Failure(400, f"this is not understood as HTTP: {exc}"))

    def eof_received(self) -> bool:
        return False  # close: nobody waits for the answer

    def pause_writing(self) -> None:
        self.paused_since = self._server.now
        if self.handler is not None:
            self.handler.pause()

    def resume_writing(self) -> None:
        self.paused_since = None
        if self.handler is not None:
            self.handler.resume()

    # ----------------------------------------------------------------------------------------- httptools' callbacks

    def on_message_begin(self) -> None:
        self._begin()
        self.reading_since = self._server.now
        self.idle_since = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_read:  # after the body: nothing that is asked for may stand there
            self.on_body(b"")
            self._size += len(name) + len(value)
            return
        name = name.lower()
        headers = self._headers
        if name in headers and name in _ONCE:
            raise Failure(400, f"the header {name.decode()} came twice")
        headers[name] = value

    def on_headers_complete(self) -> None:
        self._head_read = True
        headers = self._headers
        if self._head > _HEAD_LIMIT and sum(map(len, headers)) + sum(map(len, headers.values())) > _HEAD_LIMIT:
            raise _HEAD_TOO_LONG
        if len(headers) > _HEADERS_LIMIT:
            raise Failure(431, f"a request has at most {_HEADERS_LIMIT} headers")
        if b"content-length" in headers and int(headers[b"content-length"]) > self._server.max_body_bytes:
            raise self._too_large()
        if self._parser is not None and self._parser.should_upgrade() and _FRAMING & headers.keys():
            raise _NO_UPGRADE  # what follows would be in the other protocol, and no body
        if (
            b"expect" in headers
            and headers[b"expect"].lower() == b"100-continue"
            and self.transport is not None
            and not self.busy
        ):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._server.max_body_bytes:
            raise self._too_large()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.reading_since = None
        self._head, self._head_read = 0, False
        request = self._made()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._request is None and not self._ahead:
            self._serve(request, body)
            return
        self._ahead.append((request, body))
        assert self.transport is not None
        if len(self._ahead) > _AHEAD or sum(len(waiting) for _, waiting in self._ahead) > _AHEAD_BYTES:
            self.transport.pause_reading()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0

    def _made(self) -> Request:
        assert self._parser is not None
        path = self._url.decode("latin-1").partition("?")[0]
        keep_alive = self._parser.should_keep_alive()
        chunks = self._parser.get_http_version() == "1.1"
        return Request(self._parser.get_method().decode(), path, self._headers, keep_alive, chunks)

    def _too_large(self) -> Failure:
        limit = self._server.max_body_bytes
        return Failure(413, f"a request's body has at most {limit >> 20} MiB (gateway.max_body_mib)")

    def _refuse(self, failure: Failure) -> None:
        """Answer what cannot be read, and hang up: where the next request begins is not known."""
        self._refused = self._closing = True
        if self._request is not None:  # a good one is being answered: it comes first, and is the last
            self._ahead.clear()
            self.reading_since = None
            return
        self._request = Request("", "", {}, keep_alive=False, chunks=True)
        self._server.refused(failure.status)
        self.fail(failure)


_HEAD_TOO_LONG = Failure(431, f"the line and headers of a request have at most {_HEAD_LIMIT} bytes")
_NO_UPGRADE = Failure(400, "only HTTP/1.1 is spoken here: ask without the header upgrade (curl --http1.1)")
_UNREADABLE = Failure(400, "this request cannot be read")
