"""The calls that deployments answer: they are read and checked here, and an exchange goes on with them."""

from __future__ import annotations

import difflib
import reprlib
from typing import Protocol

from engines.dialect import CHAT, COMPLETIONS, EMBEDDINGS, Call, names_model_once
from launcher.gateway import body as bodies
from launcher.gateway.connection import ClientConnection
from launcher.gateway.errors import Failure
from launcher.gateway.exchange import Exchange, ExchangeHost
from launcher.gateway.guard import Guard
from launcher.gateway.reader import Request
from launcher.gateway.state import KeyState
from launcher.gateway.table import Table

_NAME_LIMIT = 200
CALLS = {f"/v1{path}": path for path in (CHAT, COMPLETIONS, EMBEDDINGS)}


class ChatHost(ExchangeHost, Protocol):
    """The part of the server that these calls need."""

    table: Table
    draining: bool  #: the gateway is being stopped, and takes no new requests


def asker(guard: Guard, request: Request) -> KeyState:
    """Return who asks. Raises `Failure` for whoever may not, whatever is in the body."""
    if request.method != "POST":
        raise Failure(405, f"{request.path} takes POST, not {request.method}", headers={"allow": "POST"})
    return guard.who(request)


def begin(server: ChatHost, client: ClientConnection, request: Request, key: KeyState, body: bytes) -> None:
    """Read a call's body, and start its exchange. Raises `Failure` for what no deployment needs to see."""
    if server.draining:
        raise Failure(503, "the gateway is being stopped", "stopping", headers={"retry-after": "1"})
    call = Call(CALLS[request.path], body, bodies.read(body), names_model_once(body))
    if not call.plain:
        bodies.check_model_once(body)
    name = call.fields.get("model")
    if not isinstance(name, str) or len(name) > _NAME_LIMIT:
        raise Failure(400, f"model must be a name, not {reprlib.repr(name)}; {_names(server.table, key)}")
    route = server.table.find(name)
    if route is None or not key.may_ask(route.name):  # to a key that may not ask it, it is not there
        near = difflib.get_close_matches(name, [*filter(key.may_ask, server.table.names())], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise Failure(404, f"model {name!r} not found; {hint}{_names(server.table, key)}", "model_not_found")
    Exchange(server, client, request, call, route, key).start()


def _names(table: Table, key: KeyState) -> str:
    return f"there are: {', '.join(filter(key.may_ask, table.names())) or 'none yet'}"
