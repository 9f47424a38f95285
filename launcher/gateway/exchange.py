"""One request on its way: to a place, to a replica, and its answer back to the client. On the gateway's hot path.

Everything happens in callbacks of one thread: no task and no timer belongs to a request that meets no difficulty. While
nothing has been sent to the client, another replica may be tried; after that, a failure is told in the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from engines.base import InferenceError
from engines.dialect import Call
from launcher.gateway.admission import Admission, Full, Ticket
from launcher.gateway.answer import NOTHING
from launcher.gateway.attempt import Attempt, AttemptHost
from launcher.gateway.connection import ClientConnection
from launcher.gateway.errors import BUG, ENGINE, Failure
from launcher.gateway.reader import Request
from launcher.gateway.routing import Replica, Upstream
from launcher.gateway.state import KeyState, RouteState

log = logging.getLogger(__name__)

#: statuses of a server that can answer nobody, and those that another server might not give
_UNWELL = frozenset({502, 503})
_TRY_ANOTHER = frozenset({429, 500, *_UNWELL})


class ExchangeHost(AttemptHost, Protocol):
    """The part of the server that an exchange needs."""

    now: float  #: as of the last tick
    admission: Admission
    exchanges: set[Exchange]  #: those that have not ended

    def will_serve(self, route: RouteState, among: Collection[str] | None) -> bool:
        """Return whether a replica of the route is on its way; starts one that may be started."""


class Exchange(Ticket):
    """One request, from its admission to the end of its answer; the client's handler, and the owner of its attempts.

    It waits in the queue until it is `inside`. From then on it has an attempt, or is held: a replica is on its way.
    """

    __slots__ = ("_among", "_attempt", "_began", "_client", "_failure", "_first", "_host", "_key",
                 "_passed_on", "_placed", "_spent", "_tried", "call", "news_until", "route")  # fmt: skip

    def __init__(
        self,
        host: ExchangeHost,
        client: ClientConnection,
        request: Request,
        call: Call,
        route: RouteState,
        key: KeyState,
    ) -> None:
        self.route_gate = route.gate
        self.key_gate = key.gate
        self.inside = False
        self.call = call
        self.route = route
        self._host = host
        self._client = client
        self._passed_on = request.passed_on
        self._key = key
        #: the members that the route's rules leave; None for all
        self._among = route.choice.candidates(call.fields) if route.settings.rules else None
        self._tried: tuple[Replica, ...] = ()
        self._spent: tuple[Replica, ...] = ()  #: those that were sent the request, and may have worked on it
        self._failure: Failure | None = None  #: how the last attempt failed
        self._attempt: Attempt | None = None  #: the one that is on its way
        self.news_until = 0.0  #: see `Owner`
        self._began = self._placed = host.clock()  #: when it came, and when it had its place
        self._first: float | None = None  #: when the client was sent the first byte of a stream

    def start(self) -> None:
        """Go on at once, wait for a place, or tell the client that the queue is full."""
        self._client.handler = self
        self._host.exchanges.add(self)
        try:
            if self._host.admission.enter(self, self.route.settings.queue):
                self._try(self._began)
        except Full:
            self._refuse(_busy(f"{self.route.settings.queue} requests wait for {self.route.name!r} already"))

    # ------------------------------------------------------------------------------------------------ the attempts

    def go(self) -> None:
        """Go on: there is a place, after a while in the queue."""
        self.by_itself(self._go)

    def give_way(self) -> None:
        """Leave the queue to somebody whose key has fewer requests there."""
        self.by_itself(lambda: self._refuse(_busy(f"others wait for {self.route.name!r}, too")))

    def by_itself(self, turn: Callable[[], None]) -> None:
        """Call `turn`, and contain what it raises: it comes from another request's end, or from the clock."""
        try:
            turn()
        except Exception:
            log.exception("a bug: with a request that had waited")
            self.crash()

    def _go(self) -> None:
        self._among = self.route.choice.candidates(self.call.fields)  # they may be others by now
        self._placed = now = self._host.clock()
        self._try(now)

    def _try(self, now: float) -> None:
        """Make an attempt at the next replica; or be held while one is on its way; or refuse."""
        replica = self.route.choice.pick(self._among, self._tried, now)
        if replica is not None and (upstream := replica.upstream) is not None:
            self._send_to(replica, upstream, now)
        elif now - self._placed >= self.route.settings.hold_s or not (
            now < self.news_until or self._host.will_serve(self.route, self._among)
        ):
            self._refuse(self._failure or self._none_ready(now))

    def _send_to(self, replica: Replica, upstream: Upstream, now: float) -> None:
        try:
            path, body = upstream.dialect.request(self.call)
        except InferenceError as exc:
            self._refuse(Failure(400, str(exc), source=ENGINE))
            return
        replica.in_flight += 1
        replica.requests += 1
        if replica.breaker.failures:
            replica.breaker.tried(now)
        self._attempt = attempt = Attempt(self, self._host, replica, upstream, now)
        attempt.send(path, body, self._passed_on)
        if self._client.paused_since is not None:
            attempt.pause()

    def send_again(self, attempt: Attempt, failure: Failure) -> None:
        """Send the request to the same replica once more: its idle connection was closed as the request was sent.

        Nobody can be sure that the server has not read it: it counts as an attempt.
        """
        replica, upstream = attempt.replica, attempt.upstream
        if replica.upstream is not upstream or len(self._spent) >= self.route.settings.retries:
            self.failed(attempt, failure, blamed=False)
            return
        self._spent += (replica,)
        replica.close_idle()
        self._release(attempt)
        self._send_to(replica, upstream, self._host.clock())

    # ------------------------------------------------------------------------------------------- how an attempt ends

    def said(self, attempt: Attempt, events: bytes) -> None:
        """Send the client some events of a stream."""
        if self._first is None:
            self._first = self._host.clock()
            self._client.begin_stream(attempt.replica.header)
        self._client.chunk(events)

    def answered(self, attempt: Attempt, answer: bytes) -> None:
        """Send the client the whole answer."""
        self._succeeded(attempt)
        self._finish(200)
        self._client.answer(200, answer, extra=attempt.replica.header)

    def streamed(self, attempt: Attempt) -> None:
        """End the client's stream."""
        self._succeeded(attempt)
        self._finish(200)
        self._client.end_stream()

    def refused(self, attempt: Attempt, failure: Failure) -> None:
        """Tell the client what the server said, or let another replica answer where it might do better."""
        if failure.status in _UNWELL:
            attempt.await_verdict(partial(self.failed, attempt, failure))
        elif failure.status >= 500 and len(self.route.choice.replicas) > 1:  # some say so, and end
            attempt.await_verdict(partial(self._leave_to_another, attempt, failure))
        elif failure.status in _TRY_ANOTHER:
            self._leave_to_another(attempt, failure)
        else:
            self._succeeded(attempt)
            self._refuse(failure)

    def _leave_to_another(self, attempt: Attempt, failure: Failure) -> None:
        self._succeeded(attempt)
        self._spent += (attempt.replica,)
        self._go_on_after(failure, attempt.replica, again=True)

    def failed(
        self, attempt: Attempt, failure: Failure, *, sent: bool = True, blamed: bool = True, again: bool = True
    ) -> None:
        """Let another replica answer, or tell the client; `Owner.failed` says what the arguments mean."""
        replica = self._release(attempt)
        if blamed:
            replica.breaker.failed(self._host.clock())
        if sent:
            self._spent += (replica,)
        message = f"{replica.name}: {failure.message}"
        self._go_on_after(Failure(failure.status, message, failure.code, ENGINE, failure.headers), replica, again)

    def _go_on_after(self, failure: Failure, replica: Replica, again: bool) -> None:
        """Make another attempt where that is allowed; else the client is told of this failure."""
        replica.failures += 1
        if self._first is not None:
            log.warning("%s, in the middle of a stream", failure.message)
            self._finish(failure.status)
            self._client.chunk(failure.event())
            self._client.end_stream()
            return
        self._failure = failure
        self._tried += (replica,)
        if not again or len(self._spent) > self.route.settings.retries or failure.status == 504:
            self._refuse(failure)
        else:
            self._try(self._host.clock())

    def _succeeded(self, attempt: Attempt) -> None:
        replica = self._release(attempt)
        if replica.breaker.failures:
            replica.breaker.succeeded()

    def _release(self, attempt: Attempt) -> Replica:
        """Give back what the attempt holds, a place at its replica and bytes of its answer; return the replica."""
        self._attempt = None
        replica = attempt.replica
        replica.in_flight -= 1
        replica.used = self._host.now
        if attempt.incoming is not NOTHING:
            attempt.incoming.release()
        return replica

    # --------------------------------------------------------------------------------------------- how a request ends

    def _refuse(self, failure: Failure) -> None:
        self._finish(failure.status)
        self._client.fail(failure)

    def _none_ready(self, now: float) -> Failure:
        reasons = [why for replica in self.route.choice.replicas if (why := replica.why_not(now))]
        text = f"no deployment of {self.route.name!r} can answer: {'; '.join(reasons) or 'its rules leave none'}"
        return Failure(503, text, "no_deployment_ready", headers={"retry-after": "1"})

    def crash(self) -> None:
        """End after a bug of ours, which is in the log: neither client nor replica may wait for ever."""
        self._give_up()
        if self in self._host.exchanges:
            self._finish(500)
        if self._client.handler is not self:
            return
        if self._first is None:
            self._client.fail(BUG)
        else:
            self._client.close()

    def client_gone(self) -> None:
        """End: nobody waits any more, and the server behind us must not go on for nothing."""
        self._give_up()
        self._finish(499)  # nginx's number for it

    def _give_up(self) -> None:
        if (attempt := self._attempt) is not None:
            attempt.close()
            self._release(attempt)

    def _finish(self, status: int) -> None:
        now = self._host.clock()
        self._host.exchanges.discard(self)
        self._host.admission.leave(self)
        self.route.count(status, now - self._began, None if self._first is None else self._first - self._began)
        self._key.requests += 1

    # ------------------------------------------------------------------------------------- the client and the clock

    def pause(self) -> None:
        """Let the server wait: the client does not read as fast as it is told."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """Let the server go on."""
        if self._attempt is not None:
            self._attempt.resume()

    def tick(self, now: float) -> None:
        """Look whether something has taken too long; called a few times a second."""
        if self in self._host.exchanges:  # else it has ended in this very tick
            self.by_itself(partial(self._tick, now))

    def _tick(self, now: float) -> None:
        limit_s = self.route.settings.queue_timeout_s
        if self._attempt is not None:
            self._attempt.tick(now)
        elif self.inside:
            self._look_again()
        elif now - self._began > limit_s:
            self._refuse(_busy(f"{self.route.name!r} had no place in {limit_s:g} s"))

    def look_again(self) -> None:
        """Go on, where what is deployed has changed and that was waited for."""
        if self in self._host.exchanges:
            self.by_itself(self._look_again)

    def _look_again(self) -> None:
        if self._attempt is not None:
            self._attempt.look_again()
        elif self.inside:  # it is held, and tries all but those that it has spent
            self._tried = self._spent
            self._try(self._host.clock())


def _busy(why: str) -> Failure:
    return Failure(429, f"{why}; ask again later", "too_many_requests", headers={"retry-after": "1"})
