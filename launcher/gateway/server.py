"""The gateway's one thread: it takes requests, and hands each to an exchange or to the API's own calls."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection
from email.utils import formatdate

from launcher.gateway import api, chat
from launcher.gateway.admission import Admission
from launcher.gateway.connection import ClientConnection, Request
from launcher.gateway.errors import BUG, Failure
from launcher.gateway.exchange import Exchange, forget
from launcher.gateway.guard import Guard
from launcher.gateway.settings import Settings
from launcher.gateway.table import RouteState, Table
from launcher.gateway.upstream import passed_on

log = logging.getLogger(__name__)

#: between two looks at what takes too long
TICK_S = 0.25


class Server:
    """What the connections and exchanges share."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop, backend: api.Backend) -> None:
        self.loop = loop
        self.clock = time.monotonic
        self.now = time.monotonic()  #: as of the last tick: good enough for what takes seconds
        self.table = Table(settings)
        self.guard = Guard(self.table)
        self.admission = Admission()
        self.backend = backend
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.refusals: Counter[int] = Counter()  #: requests that came to no route, by status
        self.tasks: set[asyncio.Future[None]] = set()
        self.since = self.now
        self.max_body_bytes = settings.max_body_bytes
        self.date = self.well = b""  #: lines of headers, as of the last tick
        self.draining = False
        self._tls: ssl.SSLContext | None = None
        self._date()

    def serve(self, client: ClientConnection, request: Request, body: bytes) -> None:
        """Answer `request`, now or later."""
        try:
            if request.asker is not None:
                chat.begin(self, client, request, request.asker, body)
                return
            if request.path.startswith("/api/"):
                request.path = request.path[4:]
            self.guard.check(request)
            request.extra = self.guard.cors(request) if b"origin" in request.headers else b""
            if request.method == "OPTIONS" and request.extra:
                api.preflight(client)
            elif request.path in chat.CALLS:
                request.passed_on = passed_on(request.headers)
                client.let_in(request, asker := chat.asker(self, request))
                chat.begin(self, client, request, asker, body)
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
        self.refusals[status] += 1

    def soon(self, what: Callable[[], None]) -> None:
        self.loop.call_soon(what)

    def tls(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def will_serve(self, route: RouteState, among: Collection[str] | None) -> bool:
        """Whether one of its deployments is on its way; one that may be started is, from now on."""
        members = [it for it in route.choice.replicas if among is None or it.name in among]
        if any(replica.on_its_way for replica in members):
            return True
        startable = [it for it in members if it.name in self.table.settings.startable and it.upstream is None]
        return bool(startable) and self.backend.start(startable[0].name)

    def use(self, settings: Settings, keys_of_servers: dict[str, str | None]) -> None:
        """Go on with new settings; requests that are on their way end as they began."""
        for replica in self.table.use(settings, keys_of_servers):
            forget(replica)
        for connection in self.connections:
            connection.forget()
        self.max_body_bytes = settings.max_body_bytes
        self.admission.admit()
        self.look_again()

    def look_again(self) -> None:
        """What is deployed has changed: requests that are held may go on."""
        for exchange in list(self.exchanges):
            exchange.look_again()

    def tick(self) -> None:
        self.now = now = self.clock()
        settings = self.table.settings
        self._date()
        for exchange in list(self.exchanges):
            try:
                exchange.tick(now)
            except Exception:  # noqa: PERF203  (the clock goes on for the others)
                log.exception("a bug: with a request that waits")
                exchange.crash()
        for connection in list(self.connections):
            if connection.idle_since is not None and now - connection.idle_since > settings.keep_alive_s:
                connection.close()
            elif connection.reading_since is not None and now - connection.reading_since > settings.request_timeout_s:
                connection.too_slow()
            elif connection.paused_since is not None and now - connection.paused_since > settings.client_timeout_s:
                connection.close()

    def drain(self) -> None:
        """No new requests; connections end with the answers that are on their way."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_when_done()

    def _date(self) -> None:
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        self.well = b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\n" % self.date
