"""Check values that a type cannot refuse: ranges, names that become paths, keys that exclude each other. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engines.base import ConfigError
from launcher.config.schema import GOALS, LaunchConfig
from launcher.inheritance import OWN

#: names that become a folder, a file and part of a URL
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?|\*")


def check(config: LaunchConfig) -> None:
    """Raise `ConfigError` for the first value that is out of range or excluded, naming its key."""
    for problem in _problems(config):
        raise ConfigError(problem)


def _problems(config: LaunchConfig) -> Iterator[str]:
    yield from _names(config)
    if config.policy.goal not in (None, *GOALS):
        yield f"policy.goal={config.policy.goal!r} is not known; choose policy={'|'.join(GOALS)}"
    yield from _ports(config)
    yield from _devices(config)
    yield from _numbers(config)
    yield from _inherited(config)


def _names(config: LaunchConfig) -> Iterator[str]:
    for key, name in (("model.id", config.model.id), ("name", config.name)):
        if name is not None and not _NAME.fullmatch(name):
            yield f"{key}={name!r} cannot be used: up to 60 of A-Z a-z 0-9 . _ -, the first a letter or digit"


def _inherited(config: LaunchConfig) -> Iterator[str]:
    for name in config.engine.inherit:
        if name in OWN:
            yield f"engine.inherit={name} is rmlaunch's own, which tells whose a process is; leave it out"
        if not _VARIABLE.fullmatch(name):
            yield f"engine.inherit={name!r} is no variable; give names, or beginnings that end in *, such as AWS_*"


def _ports(config: LaunchConfig) -> Iterator[str]:
    given = {
        "port": config.port,
        "grpc_port": config.grpc_port,
        "metrics_port": config.metrics_port,
        "supervise.metrics_port": config.supervise.metrics_port,
    }
    seen: dict[int, str] = {}
    for key, port in given.items():
        if port is None:
            continue
        if not 1 <= port <= 65535:
            yield f"{key}={port} is no port; give one from 1 to 65535, or leave {key} out"
        if port in seen:
            yield f"{key}={port} is the same as {seen[port]}; give each a port of its own"
        seen[port] = key


def _devices(config: LaunchConfig) -> Iterator[str]:
    conf = config.device
    if conf.product and conf.assume and conf.product != conf.assume:
        yield f"device.product={conf.product!r} and device.assume={conf.assume!r} are one key; give device.assume alone"
    if conf.count is not None and conf.count < 1:
        yield f"device.count={conf.count} must be at least 1"
    if conf.ids is not None and (not conf.ids or min(conf.ids) < 0 or len(set(conf.ids)) < len(conf.ids)):
        yield f"device.ids={conf.ids} must name different devices, by numbers from 0 up"
    if conf.ids and conf.count and len(conf.ids) != conf.count:
        yield f"device.count={conf.count}, but device.ids={conf.ids} are {len(conf.ids)}; give one of them"
    for kind, settings in config.model.build.items():
        for key in ("num_devices", "batch_size"):
            value = settings.get(key, 1)
            if type(value) is not int or value < 1:
                yield f"model.build.{kind}.{key}={value!r} must be a whole number of at least 1"


def _numbers(config: LaunchConfig) -> Iterator[str]:
    supervise, sampling = config.supervise, config.sampling
    positive = {
        "model.context_length": config.model.context_length,
        "sampling.max_tokens": sampling.max_tokens,
        "supervise.startup_timeout_s": supervise.startup_timeout_s,
        "supervise.max_crashes": supervise.max_crashes,
        "supervise.backoff_s": supervise.backoff_s,
        "supervise.liveness_period_s": supervise.liveness_period_s,
        "supervise.liveness_timeout_s": supervise.liveness_timeout_s,
        "supervise.liveness_failures": supervise.liveness_failures,
    }
    for key, value in positive.items():
        if value <= 0:
            yield f"{key}={value} must be more than 0"
    for key, value in {
        "sampling.temperature": sampling.temperature,
        "supervise.stop_grace_s": supervise.stop_grace_s,
    }.items():
        if value < 0:
            yield f"{key}={value} must not be negative"
