"""The gateway's one thread: it takes requests, and hands each to an exchange or to the API's own calls."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection
from email.utils import formatdate

from launcher.gateway import api, chat
from launcher.gateway.admission import Admission
from launcher.gateway.body import Budget
from launcher.gateway.connection import ClientConnection
from launcher.gateway.errors import BUG, Failure
from launcher.gateway.exchange import Exchange
from launcher.gateway.guard import Guard
from launcher.gateway.reader import Request
from launcher.gateway.settings import Settings
from launcher.gateway.state import RouteState
from launcher.gateway.table import Table
from launcher.gateway.upstream import passed_on

log = logging.getLogger(__name__)

#: seconds between two looks at what takes too long
TICK_S = 0.25
#: descriptors for neither clients nor servers: files, logs, commands that start deployments
_OWN_DESCRIPTORS = 48
#: connections beyond the most, which get answers to all calls but a deployment's: there is always room for a probe
_STANDING = 16
#: bytes of requests whose heads have not come to their end, of all clients
_HEADS_BYTES = 16 << 20
#: bytes of answers that are kept until they are whole, of all servers
_ANSWERS_BYTES = 256 << 20


class Server:
    """The state that connections and exchanges share, and what happens between them."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop, backend: api.Backend) -> None:
        self.loop = loop
        self.clock = time.monotonic
        self.now = time.monotonic()  #: the time of the last tick: good enough for what takes seconds
        self.table = Table(settings)
        self.guard = Guard(self.table)
        self.admission = Admission()
        self.backend = backend
        self.heads = Budget(_HEADS_BYTES)
        self.answers = Budget(_ANSWERS_BYTES)
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.refusals: Counter[int] = Counter()  #: requests that came to no route, by status
        self.tasks: set[asyncio.Future[None]] = set()
        self.since = self.now
        self.bodies = Budget(settings.max_held_bytes)
        self.max_body_bytes = settings.max_body_bytes
        self.most_connections = most_connections(settings)
        self.date_header = self.ok_json_head = b""  #: lines of heads, as of the last tick
        self.draining = False
        self._tls: ssl.SSLContext | None = None
        self._make_heads()

    def connected(self, client: ClientConnection) -> None:
        """Take a new connection.

        Where there are too many, those that have asked for nothing for longest are closed, or else this one.
        """
        self.connections.add(client)
        if len(self.connections) <= self.most_connections:
            return
        nobody = self.table.nobody
        missed = [it for it in self.connections if it.can_be_missed(nobody) and it is not client]
        missed.sort(key=lambda it: (it.idle_since is None, it.idle_since or it.reading_since or 0.0))
        for connection in missed[: len(missed) // 16 + 1]:  # some at once: looking for them takes a while
            self.connections.discard(connection)  # now: more may come before the loop tells that it is lost
            connection.close()
        if not missed and len(self.connections) > self.most_connections + _STANDING:
            client.close()

    def disconnected(self, client: ClientConnection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(client)

    def judge(self, request: Request) -> None:
        """Write into `request` who asks, or why it is refused: from its head alone, before any of its body is kept."""
        request.judged_by = self.table.settings
        request.asker = None
        try:
            self.guard.check(request)
            request.extra = self.guard.cors(request) if b"origin" in request.headers else b""
            if request.path in chat.CALLS and not _is_preflight(request):
                request.passed_on = passed_on(request.headers)
                request.asker = chat.asker(self.guard, request)
                if len(self.connections) > self.most_connections:
                    raise _TOO_MANY_CONNECTIONS
        except Failure as failure:
            request.refusal = failure

    def serve(self, client: ClientConnection, request: Request, body: bytes) -> None:
        """Answer `request`, now or later."""
        try:
            if request.refusal is None and request.judged_by is not self.table.settings:
                self.judge(request)  # they have changed since its head came
            if request.refusal is not None:
                raise request.refusal
            if (asker := request.asker) is not None:
                chat.begin(self, client, request, asker, body)
            elif _is_preflight(request):
                api.preflight(client)
            else:
                api.answer(self, client, request)
        except Failure as failure:
            self.refused(failure.status)
            client.fail(failure)
        except Exception:  # a bug of ours must not fell the requests of others
            log.exception("a bug: %s %s", request.method, request.path)
            handler, client.handler = client.handler, None
            if handler is not None:
                handler.client_gone()
            self.refused(500)
            client.fail(BUG)

    def refused(self, status: int) -> None:
        """Count a request that came to no route."""
        self.refusals[status] += 1

    def soon(self, what: Callable[[], None]) -> None:
        """Call `what` after what else is to be done now."""
        self.loop.call_soon(what)

    def tls(self) -> ssl.SSLContext:
        """Return the settings for servers with https; they are made once."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def spare_descriptors(self) -> None:
        """Close a replica's idle connections, where those to all servers and the ones in use come near to the limit."""
        idle = sum(len(replica.idle) for replica in self.table.replicas.values())
        if idle and idle + len(self.exchanges) >= self.most_connections:
            max(self.table.replicas.values(), key=lambda it: len(it.idle)).close_idle()

    def will_serve(self, route: RouteState, among: Collection[str] | None) -> bool:
        """Return whether a replica of the route is on its way; starts one that may be started."""
        members = [it for it in route.choice.replicas if among is None or it.name in among]
        if any(replica.comes(self.now) for replica in members):
            return True
        startable = [it for it in members if it.name in self.table.settings.startable and it.upstream is None]
        return bool(startable) and self.backend.start(startable[0].name)

    def use(self, settings: Settings, keys_of_servers: dict[str, str | None]) -> None:
        """Go on with new settings; requests that are on their way end as they began.

        `keys_of_servers` are the keys of remote servers, by the variables that hold them.
        """
        for replica in self.table.use(settings, keys_of_servers):
            replica.close_idle()
        for connection in self.connections:
            connection.forget_admitted()
        self.max_body_bytes = settings.max_body_bytes
        self.bodies.limit = settings.max_held_bytes
        self.most_connections = most_connections(settings)
        self.admission.admit()
        self.look_again()

    def look_again(self) -> None:
        """Have all requests look again at what is deployed, which has changed: those that are held may go on."""
        for exchange in list(self.exchanges):
            exchange.look_again()

    def tick(self) -> None:
        """Look at the clock: end or hurry whatever takes too long. Called every `TICK_S`."""
        self.now = now = self.clock()
        self._make_heads()
        for exchange in list(self.exchanges):
            exchange.tick(now)
        for connection in list(self.connections):
            try:
                self._hurry(connection, now)
            except Exception:  # noqa: PERF203  (the clock goes on for the others)
                log.exception("a bug: with a connection that waits")
                connection.close()

    def _hurry(self, connection: ClientConnection, now: float) -> None:
        settings = self.table.settings
        if connection.idle_since is not None and now - connection.idle_since > settings.keep_alive_s:
            if not connection.owes:
                connection.close()
        elif connection.reading_since is not None and now - connection.reading_since > settings.request_timeout_s:
            connection.too_slow()
        elif connection.paused_since is not None and now - connection.paused_since > settings.client_timeout_s:
            connection.close()

    def drain(self) -> None:
        """Take no new requests; connections end with the answers that are on their way."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_when_done()

    def _make_heads(self) -> None:
        self.date_header = f"date: {formatdate(usegmt=True)}\r\n".encode()
        self.ok_json_head = b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\n" % self.date_header


def most_connections(settings: Settings) -> int:
    """Return how many clients may be connected: each that asks takes two descriptors, its own and one of a server."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_STANDING, min(settings.max_connections, (soft - _OWN_DESCRIPTORS - _STANDING) // 2))


def _is_preflight(request: Request) -> bool:
    """Return whether a browser asks if a page of another origin may ask, and that origin is allowed."""
    return request.method == "OPTIONS" and bool(request.extra)


_TOO_MANY_CONNECTIONS = Failure(503, "too many clients are connected (gateway.max_connections)", "busy",
                                headers={"retry-after": "1"})  # fmt: skip
