"""The typed shape of the `gateway` config: the keys of conf/gateway and conf/gateway.yaml, as Hydra checks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.base import MISSING

#: the engine's name in the ledger's record of a gateway's own deployment
ENGINE = "gateway"

#: old key → its name now; a config that still has an old key is refused
RENAMED = {"gateway.defaults_of_routes": "gateway.route_defaults"}


@dataclass
class Member:
    """A deployment of a route: a local one by its name, or a server by its URL."""

    name: str = ""
    weight: int = 1
    url: str | None = None  #: base URL of the server's API: the part before /chat/completions
    model: str | None = None  #: the model's name on that server; None sends the route's name
    api_key_env: str | None = None  #: the variable that holds its key


@dataclass
class Rule:
    """A choice of deployments for requests that meet every condition given here; None is no condition."""

    use: list[str] = field(default_factory=list)
    min_chars: int | None = None  #: characters of the prompt, or of all messages together
    max_chars: int | None = None
    stream: bool | None = None
    min_batch: int | None = None  #: texts in one request


@dataclass
class RouteDefaults:
    """The settings that a route may have; `_s` is seconds, and None is no limit."""

    strategy: str = MISSING
    max_concurrency: int | None = None
    queue: int = MISSING
    queue_timeout_s: float = MISSING
    connect_timeout_s: float = MISSING
    timeout_s: float = MISSING
    retries: int = MISSING
    hold_s: float = MISSING


@dataclass
class RouteConf(RouteDefaults):
    """One route: the deployments that answer for it, by name, `Member` or both, and its own settings."""

    deployments: list[Any] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)


@dataclass
class KeyConf:
    """One client's key, in clear (`key`) or as its SHA-256 in hex (`sha256`); None is not given."""

    key: str | None = None
    sha256: str | None = None
    routes: list[str] | None = None  #: routes that the key may ask; None is all
    max_concurrency: int | None = None


@dataclass
class Startable:
    """A deployment that the gateway may start."""

    launch: list[str] = field(default_factory=list)  #: overrides, as for `rmlaunch up`
    ttl_s: float | None = None  #: stopped after being idle for this long; None lets it run


@dataclass
class GatewayConf:
    """The whole gateway; `_s` is seconds and `_mib` MiB. Routes, deployments and keys are by name."""

    host: str = MISSING
    port: int = MISSING
    routes: dict[str, Any] = field(default_factory=dict)
    deployments: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    admin_key: str | None = None
    expose_deployments: bool = MISSING
    cors_origins: list[str] = field(default_factory=list)
    allowed_hosts: list[str] = field(default_factory=list)
    max_body_mib: int = MISSING
    max_held_mib: int = MISSING
    max_connections: int = MISSING
    request_timeout_s: float = MISSING
    keep_alive_s: float = MISSING
    client_timeout_s: float = MISSING
    drain_s: float = MISSING
    route_defaults: RouteDefaults = field(default_factory=RouteDefaults)


@dataclass
class GatewayRoot:
    """The root of the composed config, which holds `gateway` alone."""

    gateway: GatewayConf = MISSING
