"""The typed shape of the `gateway` config: what conf/gateway and conf/gateway.yaml may hold, as Hydra checks it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.base import MISSING

#: what the ledger calls the engine of a gateway's own deployment
ENGINE = "gateway"

#: keys that an earlier release called something else, by the old name; a config that still has one is refused
RENAMED = {"gateway.defaults_of_routes": "gateway.route_defaults"}


@dataclass
class Member:
    """One of a route's deployments: a local one by its name, or a server by its URL."""

    name: str = ""
    weight: int = 1
    url: str | None = None  #: of a server's API: what stands before /chat/completions
    model: str | None = None  #: what that server calls the model; None sends the route's name
    api_key_env: str | None = None  #: the variable that holds its key


@dataclass
class Rule:
    """Which deployments may answer a request that fits all that is said here."""

    use: list[str] = field(default_factory=list)
    min_chars: int | None = None  #: of the prompt, or of all messages together
    max_chars: int | None = None
    stream: bool | None = None
    min_batch: int | None = None  #: texts in one request


@dataclass
class RouteDefaults:
    """Times are in seconds."""

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
    deployments: list[Any] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)


@dataclass
class KeyConf:
    key: str | None = None
    sha256: str | None = None
    routes: list[str] | None = None  #: that it may ask; None is all
    max_concurrency: int | None = None


@dataclass
class Startable:
    """A deployment that the gateway may start."""

    launch: list[str] = field(default_factory=list)  #: overrides, as of `rmlaunch up`
    ttl_s: float | None = None  #: idle for this long, it is stopped; None lets it run


@dataclass
class GatewayConf:
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
    gateway: GatewayConf = MISSING
