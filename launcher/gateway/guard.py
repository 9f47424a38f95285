"""The checks of who may ask what: keys, web pages, and names that only look like this machine's."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from engines.base import LOOPBACK
from launcher.gateway.errors import Failure
from launcher.gateway.reader import Request
from launcher.gateway.state import KeyState
from launcher.gateway.table import Table

_HOST = re.compile(r"\[[0-9a-fA-F:.]+\]|[^:\[\]]+")


class Guard:
    """Checks requests by their heads, with the keys and names that the settings have."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def check(self, request: Request) -> None:
        """Raise `Failure` for a request that is not to be answered, whatever it asks."""
        self._check_host(request)
        self._check_origin(request)

    def who(self, request: Request) -> KeyState:
        """Return who asks. Raises `Failure` (401) where a key is needed, and none that is known came."""
        found = self._table.who(presented(request))
        if found is None:
            raise Failure(
                401,
                "a valid key is needed: authorization: Bearer …",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found

    def demand_admin(self, request: Request) -> None:
        """Raise `Failure` for whoever has not the admin key."""
        if self._table.settings.admin_sha256 is None:
            raise Failure(
                403, "starting and stopping deployments needs an admin key, and none is set: gateway.admin_key"
            )
        if not self._table.is_admin(presented(request)):
            raise Failure(401, "the admin key is needed: authorization: Bearer …", "invalid_api_key")

    def demand_insight(self, request: Request) -> None:
        """Raise `Failure` where only the admin may see what is deployed, and its logs: where there are keys at all."""
        if not self._table.settings.open:
            self.demand_admin(request)

    def _check_host(self, request: Request) -> None:
        """Refuse names that are not this gateway's: a web page can make its own name mean 127.0.0.1, our origin."""
        settings = self._table.settings
        given = request.headers.get(b"host", b"")
        if not given or settings.host not in LOOPBACK:
            return
        name = _name_of(given)
        if name not in LOOPBACK and not _is_loopback(name) and name not in settings.allowed_hosts:
            raise Failure(
                403, f"the host {given.decode('latin-1')!r} is not this gateway; gateway.allowed_hosts names others"
            )

    def _check_origin(self, request: Request) -> None:
        """Refuse web pages of other origins, unless they are named: a browser would send what they like."""
        origin = request.headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1")
        own = text.partition("://")[2] == request.headers.get(b"host", b"").decode("latin-1")
        if not own and not self.is_allowed(text):
            raise Failure(403, f"web pages of {text!r} may not ask here; gateway.cors_origins names those that may")

    def is_allowed(self, origin: str) -> bool:
        """Return whether web pages of `origin` may ask."""
        allowed = self._table.settings.cors_origins
        return origin in allowed or "*" in allowed

    def cors(self, request: Request) -> bytes:
        """Return the lines of headers that let a page of another origin read the answer; empty for one that may not."""
        origin = request.headers.get(b"origin", b"").decode("latin-1")
        if not origin or not self.is_allowed(origin):
            return b""
        return f"access-control-allow-origin: {origin}\r\nvary: origin\r\n".encode("latin-1")


@lru_cache
def _name_of(host: bytes) -> str:
    """Return the name in a Host header, without its port, in lower case; empty where there is none."""
    found = _HOST.match(host.decode("latin-1"))
    return found.group().strip("[]").lower() if found else ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name, which may mean anything
        return False


def presented(request: Request) -> bytes | None:
    """Return the key that came with a request, as OpenAI's clients send it; None where none came."""
    given = request.headers.get(b"authorization")
    if given is None:
        return None
    scheme, _, key = given.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
