"""Engines, devices and runtimes by name, found through entry points; ours and those of other packages alike."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from engines.base import ConfigError, Engine
from launcher.devices.base import DevicePlugin
from launcher.runtimes.base import Runtime
from launcher.suggest import unknown


def engine(name: str) -> Engine:
    """A new instance of the engine plugin `name`; it keeps the client connections of one deployment."""
    return cast(Engine, _load("engine", name)())


def device(kind: str) -> DevicePlugin:
    return cast(DevicePlugin, _load("device", kind)())


def runtime(name: str) -> Runtime:
    return cast(Runtime, _load("runtime", name)())


def names(group: str) -> Sequence[str]:
    return sorted(_points(group))


def _load(group: str, name: str) -> type:
    points = _points(group)
    if name not in points:
        raise ConfigError(unknown(group, name, sorted(points)))
    return cast(type, points[name].load())


def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"rmlaunch.{group}s")}
