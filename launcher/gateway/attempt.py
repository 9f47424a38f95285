"""One attempt at a request: one replica, one connection to it, and what comes back on that. On the hot path.

An attempt ends once: with an answer, a refusal or a failure, of which it tells its owner. What is then to be done about
the request, another attempt among it, is the owner's to decide (`launcher/gateway/exchange.py`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from engines.base import InferenceError
from engines.dialect import Call
from launcher.gateway.answer import NOTHING, Kept, Stream, whole
from launcher.gateway.body import Budget
from launcher.gateway.errors import ENGINE, Failure, of_engine
from launcher.gateway.routing import Replica, Upstream
from launcher.gateway.state import RouteState
from launcher.gateway.upstream import Connection, Dialer, connect, reuse

log = logging.getLogger(__name__)

#: bytes of a body from which on it is sent beside its head, and not copied behind it
_LARGE = 1 << 16
#: seconds after a refused or lost connection, in which the supervisor tells what became of the deployment
_NEWS_S = 1.0
#: seconds: a connection that closes so soon after a request was sent on it was closed before the request came
_STALE_S = 0.02
#: seconds that a server is away, at most, for `_STALE_S`: the time it took to connect has our own delays in it
_FAR_S = 0.25
#: seconds that the head of an answer may take, from its first byte
_DRY_S = 10.0
#: errors of connecting that are our own fault
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class AttemptHost(Dialer, Protocol):
    """The part of the server that an attempt needs."""

    answers: Budget  #: bytes of answers that are kept until they are whole


class Owner(Protocol):
    """Whoever makes the attempt. `answered`, `streamed`, `refused`, `failed` or `send_again` ends it."""

    news_until: float  #: the time until which a supervisor should tell what became of a deployment

    @property
    def call(self) -> Call:
        """The request, as its client sent it."""

    @property
    def route(self) -> RouteState:
        """The route that was asked for; its settings have the limits."""

    def by_itself(self, turn: Callable[[], None]) -> None:
        """Call `turn`, and contain what it raises: nobody else is to suffer from this request."""

    def said(self, attempt: Attempt, events: bytes) -> None:
        """Some events of a stream have come, each of them whole."""

    def answered(self, attempt: Attempt, answer: bytes) -> None:
        """The server has answered 200; `answer` is the body for the client."""

    def streamed(self, attempt: Attempt) -> None:
        """A stream has come to its end, all of which was `said`."""

    def refused(self, attempt: Attempt, failure: Failure) -> None:
        """The server has answered, and not with 200."""

    def failed(
        self, attempt: Attempt, failure: Failure, *, sent: bool = True, blamed: bool = True, again: bool = True
    ) -> None:
        """No answer came, or none that is understood.

        `sent`: the server may have worked on the request; `blamed`: it would fail others, too; `again`: another replica
        may be given the request.
        """

    def send_again(self, attempt: Attempt, failure: Failure) -> None:
        """The connection was closed while nobody used it, as the request was sent. `failure` says so to a client."""

    def crash(self) -> None:
        """A bug of ours has met the request, and is in the log."""


class Attempt:
    """A request that was sent to one replica; the receiver of what its connection brings."""

    __slots__ = ("_connecting", "_connection", "_else_do", "_host", "_owner", "_paused", "_progress", "incoming",
                 "replica", "upstream")  # fmt: skip

    def __init__(self, owner: Owner, host: AttemptHost, replica: Replica, upstream: Upstream, now: float) -> None:
        self.replica = replica
        self.upstream = upstream
        self.incoming: Kept | Stream = NOTHING  #: what has come of an answer in pieces
        self._owner = owner
        self._host = host
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._progress = now  #: when something was heard of it last
        self._paused = False  #: the client does not read as fast as it is told
        #: called where the engine has not ended over this request; None while no verdict is waited for
        self._else_do: Callable[[], None] | None = None

    # -------------------------------------------------------------------------------------------------- the sending

    def send(self, path: str, body: bytes, passed_on: bytes) -> None:
        """Send the request: on a connection that is there, or on a new one. `passed_on` are lines of its head."""
        upstream, length, beside = self.upstream, len(body), b""
        if length >= _LARGE:
            body, beside = b"", body
        request = b"%bcontent-length: %d\r\n%b\r\n%b" % (upstream.head(path), length, passed_on, body)
        if (connection := reuse(self.replica.idle, upstream)) is not None:
            self._use(connection, request, beside)
        else:
            self._connecting = self._host.loop.create_task(self._connect(request, beside))

    def _use(self, connection: Connection, request: bytes, beside: bytes) -> None:
        self._connection = connection
        connection.receiver = self
        connection.transport.write(request)
        if beside:
            connection.transport.write(beside)
        if self._paused:
            connection.transport.pause_reading()

    async def _connect(self, request: bytes, beside: bytes) -> None:
        upstream = self.upstream
        try:
            connection = await connect(self._host, upstream, self._owner.route.settings.connect_timeout_s)
        except (OSError, asyncio.TimeoutError) as exc:
            self._connecting = None
            self._owner.by_itself(partial(self._unreached, exc))
        except Exception:
            log.exception("a bug: connecting to %s:%d", upstream.host, upstream.port)
            self._connecting = None
            self._owner.crash()
        else:
            if self._connecting is not asyncio.current_task():  # given up as it was made, which Python may not tell us
                connection.close()
                return
            self._connecting = None
            self._owner.by_itself(partial(self._use, connection, request, beside))

    def _unreached(self, exc: Exception) -> None:
        now, upstream = self._host.clock(), self.upstream
        in_time = f"within {self._owner.route.settings.connect_timeout_s:g} s"
        reason = in_time if isinstance(exc, asyncio.TimeoutError) else f"({exc})"
        failure = Failure(502, f"no connection to {upstream.host}:{upstream.port} {reason}", source=ENGINE)
        refused = isinstance(exc, ConnectionRefusedError)
        if refused and upstream.start and self.replica.upstream is upstream:
            # Its program has ended: nothing for the breaker, its supervisor starts it again and says so.
            self.replica.lost_until = now + _NEWS_S
        self._owner.news_until = now + _NEWS_S
        ours = isinstance(exc, OSError) and exc.errno in _OUT_OF_DESCRIPTORS
        self._owner.failed(self, failure, sent=False, blamed=not ours and not (refused and upstream.start))

    # --------------------------------------------------------------------------------- what comes from the connection

    def on_head(self, connection: Connection, status: int) -> None:
        """The head of an answer has come."""
        if status == 200 and connection.streams:
            self.incoming = Stream(self._owner.call, self.upstream, self._owner.route.name)
        else:
            self.incoming = Kept(status, self._host.answers)

    def on_body(self, body: bytes) -> None:
        """A piece of the answer's body has come."""
        self._progress = self._host.clock()
        try:
            events = self.incoming.feed(body)
        except InferenceError as exc:
            self.close()
            self._owner.failed(self, Failure(502, str(exc), source=ENGINE), blamed=False)
            return
        if events:
            self._owner.said(self, events)

    def on_whole(self, connection: Connection, body: bytes, *, reusable: bool = True) -> None:
        """Called instead of on_head, on_body and on_end where a whole 200 answer came in one read."""
        self._give_back(connection, reusable=reusable)
        owner = self._owner
        try:
            answer = whole(owner.call, self.upstream, owner.route.name, body)
        except InferenceError as exc:
            owner.failed(self, Failure(502, str(exc), source=ENGINE), blamed=False)
            return
        owner.answered(self, answer)

    def on_end(self, connection: Connection, *, reusable: bool) -> None:
        """The answer has come to its end. `reusable`: the server takes another request on the connection."""
        incoming = self.incoming
        if isinstance(incoming, Stream):
            self._give_back(connection, reusable=reusable)
            self._end_stream(incoming)
        elif incoming.status == 200:
            self.on_whole(connection, bytes(incoming.body), reusable=reusable)
        else:
            retry_after = connection.header(b"Retry-After")
            self._give_back(connection, reusable=reusable)
            headers = {"retry-after": retry_after.decode("latin-1")} if retry_after else {}
            self._owner.refused(self, of_engine(incoming.status, bytes(incoming.body), headers))

    def _give_back(self, connection: Connection, *, reusable: bool) -> None:
        self._connection = None
        if reusable and self.replica.upstream is connection.upstream and not self._paused:
            self.replica.idle.append(connection)
        else:
            connection.close()

    def _end_stream(self, stream: Stream) -> None:
        try:
            events = stream.end()
        except InferenceError as exc:
            self._owner.failed(self, Failure(502, str(exc), source=ENGINE), blamed=False)
            return
        if events:
            self._owner.said(self, events)
        self._owner.streamed(self)

    def on_unreadable(self, reason: str) -> None:
        """The answer is no HTTP, and the connection is closed."""
        self._connection = None
        self._owner.failed(self, Failure(502, f"{reason} before its answer was whole", source=ENGINE))

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The connection has ended before the answer did."""
        self._connection = None
        failure = Failure(502, f"{reason} before its answer was whole", source=ENGINE)
        waited = self._host.clock() - self._progress
        at_once = waited < max(_STALE_S, 2 * min(connection.far_s, _FAR_S))
        stale = at_once and not connection.fresh and self.incoming is NOTHING
        self.await_verdict(partial(self._owner.send_again if stale else self._owner.failed, self, failure))

    def crash(self) -> None:
        """A bug of ours has met the answer, and is in the log."""
        self._owner.crash()

    # ---------------------------------------------------------------------------------------------------- the verdict

    def await_verdict(self, else_do: Callable[[], None]) -> None:
        """Find out whether a local engine has ended over this request, which is not to cost another one its life.

        `else_do` is called where it has not: at once for a server that no supervisor watches.
        """
        if not self.upstream.start:
            else_do()
            return
        now = self._host.clock()
        self._else_do = else_do
        self._owner.news_until = now + _NEWS_S
        self._hear_verdict(else_do, now)

    def look_again(self) -> None:
        """Look for a verdict, where one is waited for: what is deployed has changed."""
        if self._else_do is not None:
            self._hear_verdict(self._else_do, self._host.clock())

    def _hear_verdict(self, else_do: Callable[[], None], now: float) -> None:
        ending = self.replica.ending
        if ending is not None and ending.start != self.upstream.start:
            ending = None
        if ending is None and now <= self._owner.news_until:
            return
        self._else_do = None
        if ending is not None and ending.cause:
            text = f"its program ended while this request was worked on, which is not given to another: {ending.cause}"
            headers = {"x-should-retry": "false"}  # OpenAI's clients would ask again by themselves
            failure = Failure(502, text, "engine_ended", ENGINE, headers)
            self._owner.failed(self, failure, blamed=False, again=False)
        else:  # it goes on, somebody else has ended it, or nobody is there to say
            else_do()

    # ------------------------------------------------------------------------------------------ the owner and the clock

    def pause(self) -> None:
        """Read no more of the answer: the client does not read as fast as it is told."""
        self._paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on; the time in which nothing was read does not count."""
        self._paused = False
        self._progress = self._host.clock()
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def tick(self, now: float) -> None:
        """Look whether something has taken too long; called a few times a second."""
        limit_s = self._owner.route.settings.timeout_s
        if self._else_do is not None:
            self.look_again()
        elif self._connection is not None and 0 < self._connection.dry_since < now - _DRY_S:
            self.close()
            text = f"the head of its answer was not whole after {_DRY_S:g} s"
            self._owner.failed(self, Failure(502, text, source=ENGINE))
        elif not self._paused and now - self._progress > limit_s:
            self.close()
            text = f"not a byte of its answer came for {limit_s:g} s"
            # One request's trouble proves nothing: whoever asks for much waits for long.
            self._owner.failed(self, Failure(504, text, "timeout", ENGINE), blamed=False)

    def close(self) -> None:
        """Hang up: the server must not go on for nothing. A second call does nothing."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
