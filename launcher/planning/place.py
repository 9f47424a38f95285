"""The things that depend on where the program runs: addresses, ports, packages, and the container."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import (
    LOOPBACK,
    LOOPBACK_ADDRESS,
    Container,
    Device,
    Engine,
    Environment,
    PlanError,
)
from launcher.config import declared_device
from launcher.config.schema import ContainerConf, LaunchConfig
from launcher.deployments.ledger import Ledger
from launcher.devices.base import Resource

#: address that a server in a container listens on: its own loopback cannot be reached from outside
_ANY = "0.0.0.0"  # noqa: S104  (published on the address that was asked for, by default this machine's loopback)


@dataclass(frozen=True, slots=True)
class Place:
    """The fields of `ServeSpec` that differ between this machine and a container on it."""

    device: Device
    environment: Environment
    bind: str
    options: Mapping[str, Any]
    program: str | None
    container: Container | None = None
    published: str = ""
    tools: Environment | None = None


def resolve_place(
    config: LaunchConfig,
    engine: Engine,
    key: str,
    options: Mapping[str, Any],
    here: Environment,
    device: Device,
    found: Sequence[Resource],
    name: str,
    run_dir: str,
) -> Place:
    """Return the place of the program; `here` is its environment on this machine. Raises `PlanError`."""
    if not isinstance(config.runtime, ContainerConf):
        return Place(device, here, config.host, options, config.engine.program)
    from launcher.planning import containers

    settings = declared_device.plugin(config.device).container(device.ids, found)
    if not device.assumed:  # a vendor's tool that is not installed here is none that the engine could miss
        there = tuple(mount for mount in settings.mounts if Path(mount.partition(":")[0]).exists())
        settings = dataclasses.replace(settings, mounts=there)
    layout = containers.layout(config.engine, key)
    return Place(
        device=dataclasses.replace(device, env=settings.env),
        environment=containers.environment(config.engine, config.runtime, key, here),
        bind=_ANY,
        options={**options, **layout.options},
        program=config.engine.program or layout.program,
        container=containers.describe(config, engine, key, here, settings, name, run_dir),
        published=LOOPBACK_ADDRESS if config.host == "localhost" else config.host,
        tools=here,
    )


def resolve_ports(config: LaunchConfig, engine: Engine, ledger: Ledger) -> tuple[int, ...]:
    """Return a port for each of `engine.ports`, in that order. Raises `PlanError` if the config gives one too many."""
    wanted = {"port": config.port, "grpc_port": config.grpc_port, "metrics_port": config.metrics_port}
    listened = ["port" if port == "http" else f"{port}_port" for port in engine.ports]
    for unused in wanted.keys() - set(listened):
        if wanted[unused] is not None:
            raise PlanError(f"{unused}={wanted[unused]}, but engine={engine.name} has no such port; leave it out")
    wishes = {port: wanted.get(port) for port in listened}
    if config.supervise.metrics_port:  # the supervisor's own: none of the engine's may be the same
        wishes["supervise.metrics_port"] = config.supervise.metrics_port
    return ledger.choose_ports(config.host, wishes)[: len(listened)]


def check_bind(config: LaunchConfig, engine: Engine) -> None:
    """Raise `PlanError` if others could reach the server without a key, or if it cannot demand the key given."""
    if config.api_key and not engine.capabilities.api_key:
        raise PlanError(f"api_key is set, but engine={engine.name} cannot demand a key; leave it out")
    if config.host in LOOPBACK or config.api_key:
        return
    if engine.capabilities.api_key:
        raise PlanError(f"host={config.host!r} can be reached from outside; set api_key, or use host=127.0.0.1")
    raise PlanError(
        f"host={config.host!r} can be reached from outside and engine={engine.name} cannot demand a key; "
        "use host=127.0.0.1"
    )
