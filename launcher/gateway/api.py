"""The calls that the gateway answers itself: models, health, metrics, its state, and starting and stopping."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from launcher.gateway.connection import JSON, ClientConnection
from launcher.gateway.errors import BUG, Failure
from launcher.gateway.guard import Guard
from launcher.gateway.numbers import Counted, state
from launcher.gateway.reader import Request
from launcher.paths import shipped

log = logging.getLogger(__name__)

HTML = "text/html; charset=utf-8"


class Backend(Protocol):
    """The deployments of this machine, as the gateway starts and shows them."""

    def start(self, name: str) -> bool:
        """Begin to start a deployment, and return whether it is on its way. A second call does nothing.

        `name` is one that may be started. False for a while after a start that failed.
        """

    async def load(self, name: str) -> Mapping[str, Any]:
        """Start a deployment, and wait until it serves. Raises `Failure`."""
        ...

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Drain and stop a deployment, and wait until nothing is left of it. Raises `Failure`."""
        ...

    def deployments(self) -> list[Mapping[str, Any]]:
        """Return all deployments that run or may be started, sorted by name, as `/models` shows them."""

    def log(self, name: str, lines: int) -> str:
        """Return the last `lines` of the log of a deployment's engine. Raises `Failure`."""
        ...


class ApiHost(Counted, Protocol):
    """The part of the server that these calls need."""

    loop: asyncio.AbstractEventLoop
    guard: Guard
    backend: Backend
    draining: bool  #: the gateway is being stopped, and takes no new requests
    tasks: set[asyncio.Future[None]]  #: tasks that run, so that they are not collected before they are done

    def refused(self, status: int) -> None:
        """Count a request that came to no route."""


def answer(server: ApiHost, client: ClientConnection, request: Request) -> None:
    """Answer a call, now or later. Raises `Failure` for a path or a method that is not there."""
    path = request.path
    found = _CALLS.get(path)
    if found is not None:
        method, call = found
        if request.method != method and (method, request.method) != ("GET", "HEAD"):
            raise Failure(405, f"{path} takes {method}, not {request.method}", headers={"allow": method})
        call(server, client, request)
        return
    for pattern, method, take in _WITH_NAMES:
        if match := pattern.fullmatch(path):
            if request.method != method:
                raise Failure(405, f"{path} takes {method}, not {request.method}", headers={"allow": method})
            take(server, client, request, unquote(match[1], errors="replace"))
            return
    raise Failure(404, f"there is nothing at {path[:200]!r}; /openapi.json lists what is there", "not_found")


def preflight(client: ClientConnection) -> None:
    """Answer a browser that asks first whether a page of another origin may ask; its origin has been allowed."""
    allowed = (
        b"access-control-allow-methods: GET, POST\r\naccess-control-allow-headers: authorization, content-type\r\n"
    )
    client.answer(204, b"", extra=allowed)


# ------------------------------------------------------------------------------------------------------------ calls


def _models(server: ApiHost, client: ClientConnection, request: Request) -> None:
    key = server.guard.who(request)
    rows = [_model(name) for name in server.table.names() if key.may_ask(name)]
    _say(client, {"object": "list", "data": rows})


def _one_model(server: ApiHost, client: ClientConnection, request: Request, name: str) -> None:
    key = server.guard.who(request)
    if server.table.find(name) is None or not key.may_ask(name):
        raise Failure(404, f"model {name!r} not found", "model_not_found")
    _say(client, _model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rmlaunch"}


def _health(server: ApiHost, client: ClientConnection, request: Request) -> None:  # noqa: ARG001
    status = "draining" if server.draining else "ok"
    _say(client, {"status": status}, 503 if server.draining else 200)


def _metrics(server: ApiHost, client: ClientConnection, request: Request) -> None:
    server.guard.demand_insight(request)
    from launcher.gateway import exposition  # prometheus_client is loaded for whoever asks

    client.answer(200, exposition.exposition(server), exposition.CONTENT_TYPE)


def _deployed(server: ApiHost, client: ClientConnection, request: Request) -> None:
    server.guard.demand_insight(request)
    _say(client, {"models": server.backend.deployments()})


def _state(server: ApiHost, client: ClientConnection, request: Request) -> None:
    server.guard.demand_insight(request)
    _say(client, {**state(server), "deployments": server.backend.deployments()})


def _log(server: ApiHost, client: ClientConnection, request: Request, name: str) -> None:
    server.guard.demand_insight(request)
    client.answer(200, server.backend.log(name, 200).encode(errors="replace"), "text/plain; charset=utf-8")


def _load(server: ApiHost, client: ClientConnection, request: Request, name: str) -> None:
    server.guard.demand_admin(request)
    _later(server, client, server.backend.load(name))


def _unload(server: ApiHost, client: ClientConnection, request: Request, name: str) -> None:
    server.guard.demand_admin(request)
    _later(server, client, server.backend.unload(name))


def _page(server: ApiHost, client: ClientConnection, request: Request) -> None:  # noqa: ARG001
    client.answer(200, (shipped("templates") / "gateway" / "status.html").read_bytes(), HTML, _NO_FRAMES)


def _openapi(server: ApiHost, client: ClientConnection, request: Request) -> None:  # noqa: ARG001
    client.answer(200, (shipped("templates") / "gateway" / "openapi.json").read_bytes())


#: headers of the status page: nothing of other origins is loaded, and no other page may show this one
_NO_FRAMES = (
    b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    b"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
    b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
)

_CALLS: Mapping[str, tuple[str, Callable[[ApiHost, ClientConnection, Request], None]]] = {
    "/v1/models": ("GET", _models),
    "/health": ("GET", _health),
    "/metrics": ("GET", _metrics),
    "/models": ("GET", _deployed),
    "/state": ("GET", _state),
    "/openapi.json": ("GET", _openapi),
    "/": ("GET", _page),
}
_WITH_NAMES: tuple[tuple[re.Pattern[str], str, Callable[[ApiHost, ClientConnection, Request, str], None]], ...] = (
    (re.compile(r"/v1/models/(.+)"), "GET", _one_model),
    (re.compile(r"/models/([^/]+)/load"), "POST", _load),
    (re.compile(r"/models/([^/]+)/unload"), "POST", _unload),
    (re.compile(r"/models/([^/]+)/log"), "GET", _log),
)


# ------------------------------------------------------------------------------------------------------------ saying


def _say(client: ClientConnection, data: object, status: int = 200) -> None:
    client.answer(status, json.dumps(data).encode(), JSON)


class _Waiting:
    """A client that waits for what takes a while; when it leaves, what it asked for goes on."""

    def client_gone(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def _later(server: ApiHost, client: ClientConnection, work: Awaitable[Mapping[str, Any]]) -> None:
    client.handler = waiting = _Waiting()

    async def finish() -> None:
        try:
            data = await work
        except Failure as failure:
            if client.handler is waiting:
                server.refused(failure.status)
                client.fail(failure)
            return
        except Exception:
            log.exception("a bug: with what takes a while")
            if client.handler is waiting:
                client.fail(BUG)
            return
        if client.handler is waiting:
            _say(client, data)

    task = asyncio.ensure_future(finish(), loop=server.loop)
    server.tasks.add(task)
    task.add_done_callback(server.tasks.discard)
