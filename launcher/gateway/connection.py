"""A client's connection: requests in their order, and their answers. HTTP/1.1, one request after the other."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from launcher.gateway.body import SMALL, Budget, hold, release, weight
from launcher.gateway.errors import Failure
from launcher.gateway.heads import Head
from launcher.gateway.reader import UPGRADED, Judge, Reader, Request
from launcher.gateway.response_head import first_lines, of_stream
from launcher.gateway.state import KeyState

#: requests, and bytes of their heads, that a client may send ahead of its answer before no more are read; and the
#: number of requests from which on they are refused
_AHEAD, _AHEAD_BYTES, _MOST_AHEAD = 16, 1 << 16, 128
#: bytes of an answer from which on it is counted until the client has read it
_LARGE = 1 << 18
#: bytes that are read and forgotten after a refusal, so that a client that still sends gets to read it
_LINGER_BYTES = 64 << 20
_LINGER_S = 0.02  #: seconds between two reads of these

JSON = "application/json"


class Handler(Protocol):
    """Whoever answers a request that takes a while."""

    def client_gone(self) -> None:
        """Stop: the client has left."""

    def pause(self) -> None:
        """Send the client no more for now: it does not read as fast as it is sent to."""

    def resume(self) -> None:
        """Go on: the client has read what it was sent."""


class ConnectionHost(Judge, Protocol):
    """The part of the server that a client's connection needs."""

    loop: asyncio.AbstractEventLoop
    now: float  #: as of the last tick
    heads: Budget  #: bytes of heads that have not come to their end, or wait
    answers: Budget  #: bytes of answers that are kept, or wait for their client
    ok_json_head: bytes  #: the first lines of a good answer in JSON
    date_header: bytes

    def connected(self, client: ClientConnection) -> None:
        """Take a new connection; may close it, or others in its place."""

    def disconnected(self, client: ClientConnection) -> None:
        """Forget a connection that is closed."""

    def serve(self, client: ClientConnection, request: Request, body: bytes) -> None:
        """Answer `request`, now or later."""

    def soon(self, what: Callable[[], None]) -> None:
        """Call `what` after what else is to be done now."""


class ClientConnection(asyncio.Protocol):
    """A client's connection: it reads requests, has them served one after the other, and writes the answers."""

    __slots__ = ("_admitted", "_ahead", "_ahead_bytes", "_closing", "_cost", "_held_answer", "_held_heads",
                 "_host", "_lingered", "_of_asker", "_reader", "_refused", "_request", "_served", "_unread",
                 "handler", "idle_since", "paused_since", "reading_since", "transport")  # fmt: skip

    def __init__(self, host: ConnectionHost) -> None:
        self._host = host
        self._reader = Reader(host, self)
        self.transport: asyncio.Transport | None = None
        self.handler: Handler | None = None
        self._request: Request | None = None  #: the one that is being answered
        self._cost = 0  #: bytes that are held for that request's body
        self._ahead: deque[tuple[Request, bytes, int]] = deque()  #: requests that wait, with body and cost
        self._ahead_bytes = 0  #: bytes of the heads of those ahead
        self._held_heads = 0  #: bytes of heads that wait, or have not come to their end, which everybody may send
        self._held_answer = 0  #: bytes of a large answer that the client has yet to read
        self._of_asker = False  #: the last answer was a deployment's
        self._served = False  #: a request of what is being read has been served
        self._closing = False  #: the connection closes after the answer
        self._refused = False  #: what comes from now on is not read any more
        self._lingered = 0
        self.idle_since: float | None = host.now
        self.reading_since: float | None = None
        self.paused_since: float | None = None
        self._unread: Head | None = None  #: the head of what the reader gets now, where that is one whole request
        self._admitted: tuple[Head, Request] | None = None  #: the last request that was let in, and its head

    # ----------------------------------------------------------------------------------------------------- answers

    def answer(self, status: int, body: bytes, content_type: str = JSON, extra: bytes = b"") -> None:
        """Send a whole answer; `extra` are further lines of headers."""
        request = self._request
        if request is None or self.transport is None:
            return
        if status == 200 and content_type is JSON:
            head = self._host.ok_json_head
        else:
            head = first_lines(status, self._host.date_header, content_type)
        end = b"" if request.keep_alive and not self._closing else b"connection: close\r\n"
        said = b"" if request.method == "HEAD" else body
        self.transport.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b" % (head, request.extra, extra, len(body), end, said)
        )
        if len(said) > _LARGE:
            self._hold_answer(self.transport.get_write_buffer_size())
        self._answered()

    def fail(self, failure: Failure) -> None:
        """Send a failure as the whole answer, in OpenAI's envelope."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in failure.headers.items()).encode("latin-1", "replace")
        self.answer(failure.status, failure.body(), JSON, extra)

    def begin_stream(self, extra: bytes) -> None:
        """Send the head of a stream of events; `extra` are further lines of headers."""
        request = self._request
        if request is None or self.transport is None:
            return
        if not request.chunks:
            self._closing = True
        last = self._closing or not request.keep_alive
        lines = request.extra + extra
        self.transport.write(of_stream(self._host.date_header, lines, chunks=request.chunks, last=last))

    def chunk(self, data: bytes) -> None:
        """Send some events of a stream."""
        if self._request is None or self.transport is None or not data:
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._request.chunks else data)

    def end_stream(self) -> None:
        """Send the end of a stream."""
        if self._request is None or self.transport is None:
            return
        if self._request.chunks:
            self.transport.write(b"0\r\n\r\n")
        self._answered()

    def close(self) -> None:
        """Close at once, whatever is on its way."""
        if self.transport is not None:
            self.transport.abort()

    def too_slow(self) -> None:
        """Refuse a client that takes too long to send a request; close where it was refused already."""
        if self._refused:
            self.close()
        else:
            self._refuse(Failure(408, "the request did not come in time (gateway.request_timeout_s)"))

    def close_when_done(self) -> None:
        """Close after the answer that is on its way; at once where there is none."""
        self._closing = True
        if self._request is None and self.transport is not None:
            self.transport.close()

    def can_be_missed(self, nobody: KeyState) -> bool:
        """Return whether nothing is lost with this connection.

        Then no request of anybody who was let in is read, answered or waits, and no answer to one is still to be read.
        `nobody` is who comes without a key.
        """
        if self._request is not None or self._ahead or self.owes:
            return self._refused and self._request is None
        reading = self._reader.request
        return reading is None or reading.payer is None or reading.payer is nobody

    @property
    def owes(self) -> bool:
        """True while the client has yet to read the end of an answer from a deployment."""
        return self._of_asker and self.transport is not None and self.transport.get_write_buffer_size() > 0

    def _answered(self) -> None:
        request, self._request = self._request, None
        self.handler = None
        assert request is not None
        assert self.transport is not None
        self._of_asker = request.asker is not None
        if self._cost:
            self._give_back(request, self._cost)
            self._cost = 0
        if self._closing or not request.keep_alive:
            self._hang_up()
        elif self._ahead:
            self._host.soon(self._next)  # not here: an endless line of short requests would be an endless recursion
        elif self.reading_since is None:
            self.idle_since = self._host.now

    def _hold_answer(self, amount: int) -> None:
        """Count what the client has yet to read among the answers that are kept."""
        self._host.answers.held += amount - self._held_answer
        self._held_answer = amount

    def _give_back(self, request: Request, cost: int) -> None:
        if cost and request.payer is not None:
            release(cost, self._host.bodies, request.payer.bodies)

    def _hang_up(self) -> None:
        """Close the connection; a client that is still sending must first get to read the answer."""
        assert self.transport is not None
        if self._refused and self.transport.can_write_eof():
            self.transport.write_eof()
            self.reading_since = self._host.now
        else:
            self.idle_since = self._host.now  # a client that does not read the end is not waited for for ever
            self.transport.close()

    def _next(self) -> None:
        """Serve the next request that came ahead; not while the client reads no answers, which would pile up."""
        if self._request is None and self._ahead and self.transport is not None and self.paused_since is None:
            request, body, cost = self._ahead.popleft()
            self._ahead_bytes -= request.size
            self._hold_heads(self._reader.unfinished + self._ahead_bytes)
            self._serve(request, body, cost)
            self._read_on()

    def _read_on(self) -> None:
        if self.transport is not None and self.paused_since is None and not self._is_ahead:
            self.transport.resume_reading()

    @property
    def _is_ahead(self) -> bool:
        return len(self._ahead) >= _AHEAD or self._ahead_bytes >= _AHEAD_BYTES

    def _serve(self, request: Request, body: bytes, cost: int) -> None:
        self._request = request
        self._cost = cost
        self.idle_since = None
        self._host.serve(self, request, body)

    def forget_admitted(self) -> None:
        """Forget the last head that was let in: settings have changed, and may not let it in any more."""
        self._admitted = None

    # ------------------------------------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the new connection to the server, which may close it."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._host.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Give back what is held for the client, and tell whoever answers it."""
        self._host.disconnected(self)
        self._reader.close()
        self._hold_heads(0)
        self._hold_answer(0)
        if self._request is not None:
            self._give_back(self._request, self._cost)
        self._forget_ahead()
        self.transport = self._request = None
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.client_gone()

    def data_received(self, data: bytes) -> None:
        """Serve a request with a head that is known, or have the reader read `data`."""
        if self._refused:
            self._linger(len(data))
            return
        self._unread = None
        self._served = False
        try:
            if self.idle_since is not None:
                if self._admitted is not None and (body := self._admitted[0].body(data)) is not None:
                    if len(body) <= SMALL:
                        self._serve(self._admitted[1], body, 0)
                    else:
                        self._take_known(self._admitted[1], body)
                    return
                self._unread = Head.of(data)
            self._reader.feed(data)
            if self._held_heads != (waiting := self._reader.unfinished + self._ahead_bytes):
                self._hold_heads(waiting)
        except Failure as failure:
            self._refuse(failure)

    def _linger(self, amount: int) -> None:
        """Forget `amount` bytes, and read on slowly: many who send what nobody wants would leave others little time."""
        self._lingered += amount
        if self._lingered > _LINGER_BYTES:
            self.close()
        elif self.transport is not None:
            self.transport.pause_reading()
            self._host.loop.call_later(_LINGER_S, self._read_on)

    def eof_received(self) -> bool:
        """Return False, so that the transport closes."""
        return False  # close: nobody waits for the answer

    def pause_writing(self) -> None:
        """Have the answer wait: the client does not read as fast as it is sent to."""
        self.paused_since = self._host.now
        if self.transport is not None:
            self.transport.pause_reading()  # who does not read what was asked for gets no more to ask for
        if self.handler is not None:
            self.handler.pause()

    def resume_writing(self) -> None:
        """Go on: the client has read what it was sent."""
        self.paused_since = None
        self._hold_answer(0)
        self._read_on()
        if self.handler is not None:
            self.handler.resume()
        self._next()

    # ------------------------------------------------------------------------------------------------ the reader's

    def begun(self) -> None:
        """Note that the first byte of a request has come."""
        self.reading_since = self._host.now
        self.idle_since = None

    def wait_for_body(self) -> None:
        """Tell the client to send the body, unless others before it wait for their answer."""
        if self.transport is not None and self._request is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def taken(self, request: Request, body: bytes, cost: int) -> None:
        """Serve a whole request, or put it behind those that came ahead. Raises `Failure` where there are too many."""
        self.reading_since = None
        if self._unread is not None and request.asker is not None:
            self._admitted = self._unread, request
        if self._request is None and not self._ahead and self.paused_since is None and not self._served:
            self._served = True
            self._serve(request, body, cost)
            return
        if self._request is None and not self._ahead:  # one at a time: others come in between
            self._host.soon(self._next)
        self._ahead.append((request, body, cost))
        self._ahead_bytes += request.size
        assert self.transport is not None
        if len(self._ahead) >= _MOST_AHEAD:
            raise _TOO_MANY_AHEAD
        if self._is_ahead:
            self.transport.pause_reading()

    def _take_known(self, request: Request, body: bytes) -> None:
        """Serve what came with the head of the last request that was let in."""
        assert request.asker is not None
        cost = 0
        try:
            cost = weight(body)
            hold(cost, self._host.bodies, request.asker.bodies)
        except Failure as failure:
            request, cost = dataclasses.replace(request, refusal=failure), 0
        self._serve(request, body, cost)

    def _hold_heads(self, amount: int) -> None:
        """Count `amount` bytes of heads as held by this client.

        Raises `Failure` where all clients together have begun too much that does not come to its end.
        """
        more = amount - self._held_heads
        if more > 0 and not self._host.heads.has(more):
            raise _TOO_MANY_HEADS
        self._host.heads.held += more
        self._held_heads = amount

    def _forget_ahead(self) -> None:
        for request, _, cost in self._ahead:
            self._give_back(request, cost)
        self._ahead.clear()
        self._ahead_bytes = 0

    def _refuse(self, failure: Failure) -> None:
        """Answer a request that cannot be read, after those before it, and hang up: no next one can be told from it."""
        refused = self._reader.request
        self._reader.close()
        self._hold_heads(self._ahead_bytes)
        self._refused = True
        self.reading_since = None
        if failure is UPGRADED:
            self._end_with_last()
            return
        extra = refused.extra if refused else b""
        last = Request("", "", {}, keep_alive=False, chunks=True, extra=extra, refusal=failure)
        if self._request is None and not self._ahead:
            self._serve(last, b"", 0)
        else:
            self._ahead.append((last, b"", 0))

    def _end_with_last(self) -> None:
        if self._ahead:
            self._ahead[-1][0].keep_alive = False
        else:
            self.close_when_done()


_TOO_MANY_AHEAD = Failure(400, f"at most {_MOST_AHEAD} requests may come before their answers")
_TOO_MANY_HEADS = Failure(503, "too many requests have begun and do not come to their end", "busy")
