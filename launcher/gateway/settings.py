"""The gateway's settings: a `gateway` config, checked and with its defaults filled in.

`settings` turns a composed config into `Settings`, which travel as JSON to the gateway's process: keys are hashes by
then, and nothing of Hydra is needed to read them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import urlsplit

from engines.base import LOOPBACK, ConfigError
from launcher.config.gateway import GatewayConf, KeyConf, Member, RouteConf, RouteDefaults, Rule, Startable
from launcher.suggest import did_you_mean

STRATEGIES = ("priority", "round_robin", "least_busy")
#: times that a body's bytes may be held: as it came, as what is read of it, and as it is sent on. A text with one
#: letter beyond Latin's takes up to four bytes for each of its letters.
MOST_TIMES = 6
#: characters of a key, at least; its hash is not salted, so that the key must not be guessed
SHORTEST_KEY = 16
#: the names of routes, deployments and keys, which stand in URLs and in headers
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})")

T = TypeVar("T")


@dataclass
class Route(RouteDefaults):
    """A route with nothing left open; deployments that are asked by their own names have one each."""

    name: str = ""
    members: list[Member] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)


@dataclass
class Key:
    """A key that may ask, by its hash."""

    name: str
    sha256: str
    routes: list[str] | None = None  #: the routes and deployments that it may ask; None for all
    max_concurrency: int | None = None  #: requests at the same time; None for any number


@dataclass
class Settings:
    """All that a gateway is told; times are in seconds."""

    host: str
    port: int
    routes: list[Route]
    startable: dict[str, Startable]
    keys: list[Key]
    admin_sha256: str | None
    expose_deployments: bool
    cors_origins: list[str]
    allowed_hosts: list[str]
    max_body_bytes: int
    request_timeout_s: float
    keep_alive_s: float
    client_timeout_s: float
    drain_s: float
    deployment_defaults: Route  #: the route of a deployment that is asked by its own name, but for that name
    max_held_bytes: int = 384 << 20  #: bytes that the bodies of all requests, and what is made of them, may take
    max_connections: int = 2048

    @property
    def open(self) -> bool:
        """True where nobody needs a key for anything but starting and stopping."""
        return not self.keys and self.admin_sha256 is None


def settings(conf: GatewayConf) -> Settings:
    """Return what `conf` amounts to. Raises `ConfigError` with the key and the value."""
    startable = {name: _startable(name, item) for name, item in conf.deployments.items()}
    made = Settings(
        host=conf.host,
        port=conf.port,
        routes=[_route(name, item, conf.route_defaults) for name, item in conf.routes.items()],
        startable=startable,
        keys=[_key(name, item) for name, item in conf.keys.items()],
        admin_sha256=None if conf.admin_key is None else hashed(conf.admin_key, "gateway.admin_key"),
        expose_deployments=conf.expose_deployments,
        cors_origins=list(conf.cors_origins),
        allowed_hosts=list(conf.allowed_hosts),
        max_body_bytes=conf.max_body_mib << 20,
        request_timeout_s=conf.request_timeout_s,
        keep_alive_s=conf.keep_alive_s,
        client_timeout_s=conf.client_timeout_s,
        drain_s=conf.drain_s,
        deployment_defaults=Route(**vars(conf.route_defaults)),
        max_held_bytes=conf.max_held_mib << 20,
        max_connections=conf.max_connections,
    )
    check(made)
    return made


def hashed(key: str, where: str) -> str:
    """Return the hash that is kept of `key`, which may be one already.

    Raises `ConfigError` for a key that can be guessed; `where` says in the message which one it is.
    """
    if found := _HASH.fullmatch(key):
        return found.group(1)
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"{where} has {len(key)} characters; at least {SHORTEST_KEY} that nobody can guess are needed: "
            "`rmlaunch gateway key NAME` makes one"
        )
    return hashlib.sha256(key.encode()).hexdigest()


def check(made: Settings) -> None:
    """Raise `ConfigError` for settings that do not go together."""
    if made.open and made.host not in LOOPBACK:
        raise ConfigError(
            f"gateway.host={made.host!r} can be reached from other machines, and needs a key: gateway.keys or "
            "gateway.admin_key (`rmlaunch gateway key NAME` makes one)"
        )
    known: dict[str, Member] = {}
    for member in (member for route in made.routes for member in route.members):
        other = known.setdefault(member.name, member)
        if (other.url, other.model, other.api_key_env) != (member.url, member.model, member.api_key_env):
            raise ConfigError(
                f"gateway.routes: two servers are called {member.name!r}; give each a name: {{url: …, name: …}}"
            )
    if len({key.sha256 for key in made.keys}) < len(made.keys):
        raise ConfigError("gateway.keys: two of them are the same key; give each user one of their own")
    if made.max_body_bytes < 1 << 20 or made.max_connections < 1:
        raise ConfigError("gateway.max_body_mib and gateway.max_connections must be at least 1")
    if made.max_held_bytes < (least := MOST_TIMES * made.max_body_bytes):
        raise ConfigError(
            f"gateway.max_held_mib={made.max_held_bytes >> 20} is too little for a body of "
            f"gateway.max_body_mib={made.max_body_bytes >> 20}, which may take {MOST_TIMES} times its size; use at "
            f"least {least >> 20}"
        )
    if not 0 < made.port < 1 << 16:
        raise ConfigError(f"gateway.port={made.port} is no port; give one from 1 to 65535")


def _route(name: str, item: object, defaults: RouteDefaults) -> Route:
    where = f"gateway.routes.{name}"
    _check_name(name, where)
    given = {"deployments": item} if isinstance(item, list) else item
    conf = _typed(RouteConf(**vars(defaults)), given, where)
    members = [_member(entry, where) for entry in conf.deployments]
    if not members:
        raise ConfigError(f"{where} has no deployments; write {where}=[NAME, …]")
    if conf.strategy not in STRATEGIES:
        raise ConfigError(f"{where}.strategy={conf.strategy!r} is not known; use {', '.join(STRATEGIES)}")
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where} names a deployment twice: {', '.join(names)}")
    for rule in conf.rules:
        if not rule.use or (unknown := set(rule.use) - set(names)):
            wrong = min(unknown) if rule.use else "nothing"
            raise ConfigError(f"{where}.rules: use names {wrong!r}; deployments: {', '.join(names)}")
    for limit in ("max_concurrency", "queue", "retries"):
        value = getattr(conf, limit)
        if value is not None and value < (1 if limit == "max_concurrency" else 0):
            raise ConfigError(f"{where}.{limit}={value} is too small")
    kept = {key: value for key, value in vars(conf).items() if key not in ("deployments", "rules")}
    return Route(**kept, name=name, members=members, rules=conf.rules)


def _member(entry: object, where: str) -> Member:
    if isinstance(entry, str):
        entry = {"url": entry} if "://" in entry else {"name": entry}
    member = _typed(Member(), entry, f"{where}.deployments")
    if member.url:
        try:
            parts = urlsplit(member.url)
            port = parts.port
        except ValueError as exc:
            raise ConfigError(f"{where}: {member.url!r} is no URL: {exc}") from exc
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"{where}: {member.url!r} is not understood; write it as https://host/v1")
        member.url = member.url.rstrip("/")
        member.name = member.name or f"{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"
    _check_name(member.name, where)
    if member.weight < 1:
        raise ConfigError(f"{where}: weight={member.weight} of {member.name!r}; it must be at least 1")
    return member


def _key(name: str, item: object) -> Key:
    where = f"gateway.keys.{name}"
    _check_name(name, where)
    conf = _typed(KeyConf(), {"key": item} if isinstance(item, str) else item, where)
    if (conf.key is None) == (conf.sha256 is None):
        raise ConfigError(f"{where} needs either key or sha256")
    if conf.sha256 is not None and not _HASH.fullmatch(conf.sha256):
        raise ConfigError(f"{where}.sha256 is no SHA-256 in hex; `rmlaunch gateway key {name}` prints one")
    return Key(name, hashed(conf.sha256 or conf.key or "", where), conf.routes, conf.max_concurrency)


def _startable(name: str, item: object) -> Startable:
    where = f"gateway.deployments.{name}"
    _check_name(name, where)
    made = _typed(Startable(), {"launch": item} if isinstance(item, list) else item, where)
    if not made.launch:
        raise ConfigError(f"{where} needs what to launch: launch: [engine=…, model=…]")
    if any(word.startswith(("name=", "prompt=", "-")) for word in made.launch):
        raise ConfigError(f"{where}.launch: its name is {name}, and neither prompt= nor flags have a place in it")
    return made


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is no name; use letters, digits and . _ : / @ + -")


def _typed(shape: T, item: object, where: str) -> T:
    """Return `shape` with `item` laid over it. Raises `ConfigError` for keys and types that `shape` does not have."""
    from omegaconf import OmegaConf

    from launcher.config.compose import readable_errors

    if not isinstance(item, Mapping):
        hint = f"write {where}=[{item}]" if isinstance(item, str) else "conf/gateway/default.yaml shows what it may be"
        raise ConfigError(f"{where}={item!r} is not understood; {hint}")
    if unknown := sorted(map(str, item.keys() - vars(shape).keys())):
        known = sorted(vars(shape))
        hint = did_you_mean(unknown[0], known)
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; {hint}keys: {', '.join(known)}")
    try:
        with readable_errors():
            made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(shape), OmegaConf.create(dict(item))))
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    return cast(T, made)
