"""The table of routes, keys and replicas, as one snapshot of the settings after the other.

New settings make new routes, but a route, a key or a replica that stays keeps its state: what is in flight, counted,
waiting or connected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from engines.base import LOOPBACK
from engines.dialect import OpenAI
from launcher.config.gateway import Member
from launcher.gateway.routing import Replica, Upstream
from launcher.gateway.settings import MOST_TIMES, Key, Route, Settings
from launcher.gateway.state import KeyState, RouteState
from launcher.supervise.lifecycle import Phase

NOBODY = "anonymous"
_ENDED = frozenset(phase.value for phase in Phase if phase.final)


class Table:
    """All routes, keys and replicas that the settings name, and the deployments that were seen."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.replicas: dict[str, Replica] = {}
        self.routes: dict[str, RouteState] = {}
        self._local: dict[str, RouteState] = {}  #: the state of deployments that are asked by their own names
        self._keys: dict[str, KeyState] = {}
        self._by_digest: dict[bytes, KeyState] = {}
        self.nobody = KeyState(Key(NOBODY, "00" * 32))
        self._unknown = bytes(32)
        self._remote: frozenset[str] = frozenset()
        self.use(settings, {})

    def use(self, settings: Settings, keys_of_servers: dict[str, str | None]) -> list[Replica]:
        """Take on new settings; returns the replicas that nothing leads to any more.

        `keys_of_servers` are the keys of remote servers, by the variables that hold them.
        """
        # First all that may go wrong: half of new settings would be worse than none.
        remote = {
            member.name: _remote(member, keys_of_servers) for member in _members(settings) if member.url is not None
        }
        keys = {key.name: self._key(key) for key in settings.keys}
        admin = bytes.fromhex(settings.admin_sha256) if settings.admin_sha256 else None
        self.settings = settings
        for member in _members(settings):
            replica = self.replica(member.name)
            if member.url is not None:
                replica.point_to(remote[member.name])
        for name in settings.startable:
            self.replica(name)
        known = self._remote
        self._remote = frozenset(member.name for member in _members(settings) if member.url is not None)
        for name in known - self._remote:
            if name in self.replicas:
                self.replicas[name].point_to(None)
        for name, state in self._local.items():
            state.use(self._own(name), self.replicas)
        self.routes = {route.name: self._route(self.routes.get(route.name), route) for route in settings.routes}
        self._keys, self._by_digest = keys, {key.digest: key for key in keys.values()}
        for asker in (*keys.values(), self.nobody):  # nobody takes all of it from others
            half = max(settings.max_held_bytes // 2, MOST_TIMES * settings.max_body_bytes)
            asker.bodies.limit = half if len(keys) > 1 else settings.max_held_bytes
        self._admin = admin
        return self.prune()

    def prune(self) -> list[Replica]:
        """Forget the replicas that nothing leads to, and return them."""
        wanted = {member.name for member in _members(self.settings)} | self.settings.startable.keys()
        gone = [it for it in self.replicas.values() if it.name not in wanted and not it.phase]
        for replica in gone:
            del self.replicas[replica.name]
            self._local.pop(replica.name, None)
        return gone

    def is_remote(self, name: str) -> bool:
        """Return whether the config says where `name` is: a deployment here of the same name is another."""
        return name in self._remote

    def replica(self, name: str) -> Replica:
        """Return the replica of that name; makes one that is not known yet."""
        if name not in self.replicas:
            self.replicas[name] = Replica(name)
        return self.replicas[name]

    def find(self, name: str) -> RouteState | None:
        """Return the route of that name, or else the deployment; None where neither is there and may be asked."""
        if (route := self.routes.get(name)) is not None:
            return route
        replica = self.replicas.get(name)
        may = self.settings.expose_deployments or name in self.settings.startable
        if replica is None or not may or not (replica.phase or name in self.settings.startable):
            return None
        if name not in self._local:
            self._local[name] = RouteState(self._own(name), self.replicas)
        return self._local[name]

    def _own(self, name: str) -> Route:
        return dataclasses.replace(self.settings.deployment_defaults, name=name, members=[Member(name)])

    def names(self) -> list[str]:
        """Return the names of all that can be asked, sorted."""
        known = (
            name for name, it in self.replicas.items() if it.phase not in _ENDED or name in self.settings.startable
        )
        return sorted({*self.routes, *filter(self.find, known)})

    def states(self) -> Iterable[RouteState]:
        """Yield the state of everything that was asked or can be."""
        yield from self.routes.values()
        yield from (state for name, state in self._local.items() if name not in self.routes)

    def askers(self) -> Iterable[KeyState]:
        """Return the keys; nobody, where there are none."""
        return self._keys.values() if self._keys else (self.nobody,)

    def who(self, presented: bytes | None) -> KeyState | None:
        """Return the key's owner, or None. Compares SHA-256 digests in constant time.

        Without any keys, everybody on loopback is `nobody`, and so is the admin anywhere.
        """
        if not self._by_digest:
            return self.nobody if self.settings.host in LOOPBACK or self.is_admin(presented) else None
        digest = hashlib.sha256(presented or b"").digest()
        found = self._by_digest.get(digest)
        if hmac.compare_digest(digest, found.digest if found else self._unknown) and found:
            return found
        return self.nobody if self.is_admin(presented) else None

    def is_admin(self, presented: bytes | None) -> bool:
        """Return whether `presented` is the admin key. Compares SHA-256 digests in constant time."""
        if self._admin is None:
            return False
        return hmac.compare_digest(hashlib.sha256(presented or b"").digest(), self._admin)

    def _route(self, known: RouteState | None, route: Route) -> RouteState:
        if known is None:
            return RouteState(route, self.replicas)
        known.use(route, self.replicas)
        return known

    def _key(self, key: Key) -> KeyState:
        known = self._keys.get(key.name)
        if known is None:
            return KeyState(key)
        known.use(key)
        return known


def _members(settings: Settings) -> Iterable[Member]:
    return (member for route in settings.routes for member in route.members)


def _remote(member: Member, keys: dict[str, str | None]) -> Upstream:
    parts = urlsplit(member.url or "")
    tls = parts.scheme == "https"
    return Upstream(
        host=parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        tls=tls,
        path=parts.path.rstrip("/"),
        dialect=OpenAI(member.model, prefix=""),
        model=member.model,
        api_key=keys.get(member.api_key_env or ""),
    )
