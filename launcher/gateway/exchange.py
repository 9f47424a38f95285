"""One request on its way: to a place, to a replica, and its answer back to the client. The gateway's hot path.

Everything happens in callbacks of one thread: no task and no timer belongs to a request that meets no difficulty. While
nothing has been sent to the client, another replica may be tried; after that, a failure is told in the stream.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from engines.base import InferenceError
from engines.dialect import Call
from launcher.gateway.admission import Full, Ticket
from launcher.gateway.answer import Stream, whole
from launcher.gateway.connection import ClientConnection
from launcher.gateway.errors import BUG, ENGINE, Failure, of_engine
from launcher.gateway.reader import Request
from launcher.gateway.routing import Replica, Upstream
from launcher.gateway.upstream import Connection, connect

if TYPE_CHECKING:
    from launcher.gateway.server import Server
    from launcher.gateway.table import KeyState, RouteState

log = logging.getLogger(__name__)

#: bytes of an answer, which is kept until it is whole
_WHOLE_LIMIT = 64 << 20
#: bytes of a body from which on it is sent beside its head, and not copied behind it
_LARGE = 1 << 16
#: answers of a server that cannot answer anybody, and those that another may not give
_UNWELL = frozenset({502, 503})
_TRY_ANOTHER = frozenset({429, 500, *_UNWELL})
#: after a refused or lost connection: until the supervisor has told what became of the deployment
_NEWS_S = 1.0
#: a connection that is closed so soon after a request was sent on it was closed before that came
_STALE_S = 0.02
#: of how far a server is, at most: what it took to connect has our own delays in it
_FAR_S = 0.25
#: seconds that the head of an answer may take, from its first byte
_DRY_S = 10.0
#: what the waiting may be for
_QUEUE, _HOLD, _VERDICT = "queue", "hold", "verdict"
#: an answer of which nothing has come, shared and never added to
_NOTHING = bytearray()
#: of our own making
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Exchange(Ticket):
    __slots__ = ("_among", "_began", "_body", "_call", "_client", "_connecting", "_connection", "_else_do", "_failure",
                 "_first", "_fresh", "_go_on_until", "_heard", "_key", "_passed_on", "_placed", "_progress", "_replica",
                 "_route", "_server", "_spent", "_status", "_stream", "_tried", "_upstream", "_waits_for")  # fmt: skip

    _else_do: Callable[[], None]  #: what is to be done where a local engine has not ended over this request

    def __init__(
        self, server: Server, client: ClientConnection, request: Request, call: Call, route: RouteState, key: KeyState
    ) -> None:
        self.route_gate = route.gate
        self.key_gate = key.gate
        self.inside = False
        self._server = server
        self._client = client
        self._passed_on = request.passed_on
        self._call = call
        self._route = route
        self._key = key
        #: the members that the route's rules leave, None for all
        self._among = route.choice.candidates(call.fields) if route.settings.rules else None
        self._tried: tuple[Replica, ...] = ()
        self._spent: tuple[Replica, ...] = ()  #: those that were sent the request, and may have worked on it
        self._failure: Failure | None = None  #: of the last attempt
        #: nothing, a place in the queue, a replica that is on its way, or what has become of the last one
        self._waits_for = ""
        self._go_on_until = 0.0
        #: when it came, when it had its place, and when something was heard of it last
        self._began = self._placed = self._progress = server.clock()
        self._first: float | None = None  #: when the client was sent the first byte of a stream
        # Of the attempt that is on its way:
        self._replica: Replica | None = None
        self._upstream: Upstream | None = None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._fresh = self._heard = False  #: its connection is a new one; something has come on it
        self._status = 0
        self._body = _NOTHING  #: of an answer that is kept until it is whole

    def start(self) -> None:
        self._client.handler = self
        self._server.exchanges.add(self)
        try:
            if self._server.admission.enter(self, self._route.settings.queue):
                self._attempt(self._began)
            else:
                self._waits_for = _QUEUE
        except Full:
            self._refuse(self._busy(f"{self._route.settings.queue} requests wait for {self._route.name!r} already"))

    # ------------------------------------------------------------------------------------------------ the attempts

    def go(self) -> None:
        self._by_itself(self._go)

    def give_way(self) -> None:
        self._by_itself(lambda: self._refuse(self._busy(f"others wait for {self._route.name!r}, too")))

    def _by_itself(self, turn: Callable[[], None]) -> None:
        """Whatever goes wrong in its turn is its own: it came from another request's end, or from the clock."""
        try:
            turn()
        except Exception:
            log.exception("a bug: with a request that had waited")
            self.crash()

    def _go(self) -> None:
        self._waits_for = ""
        self._among = self._route.choice.candidates(self._call.fields)  # they may be others by now
        self._placed = now = self._server.clock()
        self._attempt(now)

    def _attempt(self, now: float) -> None:
        replica = self._route.choice.pick(self._among, self._tried, now)
        if replica is not None:
            self._send_to(replica, now)
        elif now - self._placed < self._route.settings.hold_s and (
            now < self._go_on_until or self._server.will_serve(self._route, self._among)
        ):
            self._waits_for = _HOLD
        else:
            self._refuse(self._failure or self._none_ready(now))

    def _send_to(self, replica: Replica, now: float) -> None:
        upstream = replica.upstream
        assert upstream is not None
        try:
            path, body = upstream.dialect.request(self._call)
        except InferenceError as exc:
            self._refuse(Failure(400, str(exc), source=ENGINE))
            return
        replica.in_flight += 1
        replica.requests += 1
        self._progress = now
        if replica.breaker.failures:
            replica.breaker.tried(now)
        self._replica, self._upstream = replica, upstream
        self._stream = None
        self._heard = False
        beside = body if len(body) >= _LARGE else b""
        request = b"%bcontent-length: %d\r\n%b\r\n%b" % (
            upstream.head(path), len(body), self._passed_on, b"" if beside else body
        )  # fmt: skip
        while replica.idle:
            connection = replica.idle.pop()
            if connection.upstream is upstream and connection.usable():
                self._fresh = False
                self._use(connection, request, beside)
                return
            connection.close()
        self._fresh = True
        self._connecting = self._server.loop.create_task(self._connect(upstream, request, beside))

    def _use(self, connection: Connection, request: bytes, beside: bytes) -> None:
        assert connection.transport is not None
        self._connection = connection
        connection.exchange = self
        connection.transport.write(request)
        if beside:
            connection.transport.write(beside)
        if self._client.paused_since is not None:
            self.pause()

    async def _connect(self, upstream: Upstream, request: bytes, beside: bytes) -> None:
        try:
            connection = await connect(self._server, upstream, self._route.settings.connect_timeout_s)
        except (OSError, asyncio.TimeoutError) as exc:
            self._connecting = None
            self._by_itself(partial(self._unreached, upstream, exc))
        except Exception:
            log.exception("a bug: connecting to %s:%d", upstream.host, upstream.port)
            self._connecting = None
            self.crash()
        else:
            if self._connecting is not asyncio.current_task():  # given up as it was made, which Python may not tell us
                connection.close()
                return
            self._connecting = None
            self._by_itself(partial(self._use, connection, request, beside))

    def _unreached(self, upstream: Upstream, exc: Exception) -> None:
        now = self._server.clock()
        in_time = f"within {self._route.settings.connect_timeout_s:g} s"
        reason = in_time if isinstance(exc, asyncio.TimeoutError) else f"({exc})"
        failure = Failure(502, f"no connection to {upstream.host}:{upstream.port} {reason}", source=ENGINE)
        refused = isinstance(exc, ConnectionRefusedError)
        if refused and upstream.start and self._replica is not None and self._replica.upstream is upstream:
            # Its program has ended: nothing for the breaker, its supervisor starts it again and says so.
            self._replica.lost_until = now + _NEWS_S
        self._go_on_until = now + _NEWS_S
        ours = isinstance(exc, OSError) and exc.errno in _OUT_OF_DESCRIPTORS
        self._failed(failure, sent=False, blamed=not ours and not (refused and upstream.start))

    # --------------------------------------------------------------------------------- what comes from the connection

    def begun(self, status: int) -> None:
        """The head of an answer has come."""
        assert self._upstream is not None
        assert self._connection is not None
        self._heard = True
        self._status = status
        self._body = bytearray()
        if status == 200 and self._connection.streams:
            self._stream = Stream(self._call, self._upstream, self._route.name)

    def came(self, body: bytes) -> None:
        """A piece of its body."""
        self._progress = self._server.clock()
        try:
            if self._stream is not None:
                self._say(self._stream.feed(body))
            else:
                self._keep(body)
        except InferenceError as exc:
            self._drop_connection()
            self._failed(Failure(502, str(exc), source=ENGINE), blamed=False)

    def _keep(self, body: bytes) -> None:
        if len(self._body) + len(body) > _WHOLE_LIMIT:
            raise InferenceError(f"its answer has more than {_WHOLE_LIMIT >> 20} MiB")
        if not self._server.answers.has(len(body)):
            raise InferenceError("answers that are on their way are larger than the gateway can keep")
        self._server.answers.held += len(body)
        self._body += body

    def answered(self, connection: Connection, body: bytes) -> None:
        """It has come at once, as good ones of this server do."""
        self._give_back(connection, reusable=True)
        self._end_whole(body)

    def ended(self, connection: Connection, *, reusable: bool) -> None:
        """It is whole."""
        retry_after = b"" if self._status == 200 else connection.header(b"Retry-After")
        self._give_back(connection, reusable=reusable)
        if self._stream is not None:
            self._end_stream(self._stream)
        elif self._status == 200:
            self._end_whole(bytes(self._body))
        else:
            headers = {"retry-after": retry_after.decode("latin-1")} if retry_after else {}
            self._end_refused(of_engine(self._status, bytes(self._body), headers))

    def _give_back(self, connection: Connection, *, reusable: bool) -> None:
        replica = self._replica
        assert replica is not None
        self._connection = None
        if reusable and replica.upstream is connection.upstream and self._client.paused_since is None:
            replica.idle.append(connection)
        else:
            connection.close()

    def misspoken(self, reason: str) -> None:
        """Nothing of it is to be understood, and the connection is closed."""
        self._connection = None
        self._failed(Failure(502, f"{reason} before its answer was whole", source=ENGINE))

    def broken(self, connection: Connection, reason: str) -> None:
        """The connection ended before the answer did."""
        self._connection = None
        replica, upstream = self._replica, self._upstream
        assert replica is not None
        assert upstream is not None
        now = self._server.clock()
        failure = Failure(502, f"{reason} before its answer was whole", source=ENGINE)
        stale = now - self._progress < max(_STALE_S, 2 * min(connection.far_s, _FAR_S))
        if stale and not self._fresh and not self._heard:
            self._await_verdict(partial(self._send_again, failure), now)
        else:
            self._await_verdict(partial(self._failed, failure), now)

    def _send_again(self, failure: Failure) -> None:
        """The connection was closed while nobody used it, as we sent. Nobody can be sure: it counts as an attempt."""
        replica = self._replica
        assert replica is not None
        if replica.upstream is not self._upstream or len(self._spent) >= self._route.settings.retries:
            self._failed(failure, blamed=False)
            return
        self._spent += (replica,)
        forget(replica)
        self._let_go()
        self._send_to(replica, self._server.clock())

    def _await_verdict(self, else_do: Callable[[], None], now: float) -> None:
        """Find out whether a local engine has ended over this request, which is not to cost another one its life; if it
        has not, do what is to be done then."""
        assert self._upstream is not None
        if not self._upstream.start:
            else_do()
            return
        self._else_do, self._waits_for, self._go_on_until = else_do, _VERDICT, now + _NEWS_S
        self._hear_verdict(now)

    def _hear_verdict(self, now: float) -> None:
        replica, upstream = self._replica, self._upstream
        assert replica is not None
        assert upstream is not None
        ending = replica.ending if replica.ending and replica.ending.start == upstream.start else None
        if ending is None and now <= self._go_on_until:
            return
        self._waits_for = ""
        if ending and ending.cause:
            self._end_lost(ending.cause)
        else:  # it goes on, somebody else has ended it, or nobody is there to say
            self._else_do()

    def _end_lost(self, cause: str) -> None:
        text = f"its program ended while this request was worked on, which is not given to another: {cause}"
        headers = {"x-should-retry": "false"}  # OpenAI's clients would ask again by themselves
        self._failed(Failure(502, text, "engine_ended", ENGINE, headers), blamed=False, again=False)

    # ------------------------------------------------------------------------------------------------- the answers

    def _end_whole(self, body: bytes) -> None:
        assert self._upstream is not None
        try:
            answer = whole(self._call, self._upstream, self._route.name, body)
        except InferenceError as exc:
            self._failed(Failure(502, str(exc), source=ENGINE), blamed=False)
            return
        replica = self._well()
        self._finish(200)
        self._client.answer(200, answer, extra=replica.header)

    def _end_stream(self, stream: Stream) -> None:
        try:
            self._say(stream.end())
        except InferenceError as exc:
            self._failed(Failure(502, str(exc), source=ENGINE), blamed=False)
            return
        self._well()
        self._finish(200)
        self._client.end_stream()

    def _end_refused(self, failure: Failure) -> None:
        if failure.status in _UNWELL:
            self._await_verdict(partial(self._failed, failure), self._server.clock())
        elif failure.status >= 500 and len(self._route.choice.replicas) > 1:  # some say so, and end
            self._await_verdict(partial(self._leave_to_another, failure), self._server.clock())
        elif failure.status in _TRY_ANOTHER:
            self._leave_to_another(failure)
        else:
            self._well()
            self._refuse(failure)

    def _leave_to_another(self, failure: Failure) -> None:
        replica = self._well()
        self._spent += (replica,)
        self._try_another(replica, failure)

    def _say(self, events: bytes) -> None:
        if not events:
            return
        if self._first is None:
            assert self._replica is not None
            self._first = self._server.clock()
            self._client.begin_stream(self._replica.header)
        self._client.chunk(events)

    def _well(self) -> Replica:
        replica = self._let_go()
        assert replica is not None
        if replica.breaker.failures:
            replica.breaker.succeeded()
        return replica

    # ---------------------------------------------------------------------------------------------------- failures

    def _failed(self, failure: Failure, *, sent: bool = True, blamed: bool = True, again: bool = True) -> None:
        """The replica has failed this request. `blamed`: it would fail others, too; `again`: another may have it."""
        replica = self._let_go()
        assert replica is not None
        if blamed:
            replica.breaker.failed(self._server.clock())
        if sent:
            self._spent += (replica,)
        failure = Failure(failure.status, f"{replica.name}: {failure.message}", failure.code, ENGINE, failure.headers)
        if self._first is None and again:
            self._try_another(replica, failure)
            return
        if self._first is None:
            replica.failures += 1
            self._refuse(failure)
            return
        log.warning("%s, in the middle of a stream", failure.message)
        replica.failures += 1
        self._finish(failure.status)
        self._client.chunk(failure.event())
        self._client.end_stream()

    def _try_another(self, replica: Replica, failure: Failure) -> None:
        replica.failures += 1
        self._failure = failure
        self._tried += (replica,)
        if len(self._spent) > self._route.settings.retries or failure.status == 504:
            self._refuse(failure)
        else:
            self._attempt(self._server.clock())

    def _refuse(self, failure: Failure) -> None:
        self._finish(failure.status)
        self._client.fail(failure)

    def _none_ready(self, now: float) -> Failure:
        reasons = [why for replica in self._route.choice.replicas if (why := replica.why_not(now))]
        text = f"no deployment of {self._route.name!r} can answer: {'; '.join(reasons) or 'its rules leave none'}"
        return Failure(503, text, "no_deployment_ready", headers={"retry-after": "1"})

    def _busy(self, why: str) -> Failure:
        return Failure(429, f"{why}; ask again later", "too_many_requests", headers={"retry-after": "1"})

    # ------------------------------------------------------------------------------------- the client and the clock

    def crash(self) -> None:
        """A bug of ours has met it, which is in the log: neither client nor replica may wait for ever."""
        self._drop_connection()
        self._let_go()
        if self in self._server.exchanges:
            self._finish(500)
        if self._client.handler is not self:
            return
        if self._first is None:
            self._client.fail(BUG)
        else:
            self._client.close()

    def client_gone(self) -> None:
        """Nobody waits: the server behind us must not go on for nothing."""
        self._drop_connection()
        self._let_go()
        self._finish(499)  # nginx's number for it

    def pause(self) -> None:
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        self._progress = self._server.clock()
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.resume_reading()

    def tick(self, now: float) -> None:
        """Look whether something has taken too long; called a few times a second."""
        if self not in self._server.exchanges:  # it has ended in this very tick
            return
        self._by_itself(partial(self._tick, now))

    def _tick(self, now: float) -> None:
        settings = self._route.settings
        if self._waits_for == _QUEUE:
            if now - self._began > settings.queue_timeout_s:
                self._refuse(self._busy(f"{self._route.name!r} had no place in {settings.queue_timeout_s:g} s"))
        elif self._waits_for:
            self._look_again()
        elif self._connection is not None and 0 < self._connection.dry_since < now - _DRY_S:
            self._drop_connection()
            self._failed(Failure(502, f"the head of its answer was not whole after {_DRY_S:g} s", source=ENGINE))
        elif self._client.paused_since is None and now - self._progress > settings.timeout_s:
            self._drop_connection()
            text = f"not a byte of its answer came for {settings.timeout_s:g} s"
            # One request's trouble proves nothing: whoever asks for much waits for long.
            self._failed(Failure(504, text, "timeout", ENGINE), blamed=False)

    def look_again(self) -> None:
        """What is deployed may have changed."""
        if self._waits_for:
            self._by_itself(self._look_again)

    def _look_again(self) -> None:
        """One that is held tries again, but for those that it has spent."""
        if self._waits_for == _VERDICT:
            self._hear_verdict(self._server.clock())
        elif self._waits_for == _HOLD:
            self._waits_for = ""
            self._tried = self._spent
            self._attempt(self._server.clock())

    def _drop_connection(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _let_go(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.in_flight -= 1
            replica.used = self._server.now
        if self._body:
            self._server.answers.held -= len(self._body)
            self._body = _NOTHING
        return replica

    def _finish(self, status: int) -> None:
        now = self._server.clock()
        self._waits_for = ""
        self._server.exchanges.discard(self)
        self._server.admission.leave(self)
        self._route.count(status, now - self._began, None if self._first is None else self._first - self._began)
        self._key.requests += 1


def forget(replica: Replica) -> None:
    """Close its idle connections."""
    for connection in replica.idle:
        connection.close()
    replica.idle.clear()
