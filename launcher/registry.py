"""Engines, devices and runtimes by name, found through entry points; ours and those of other packages alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from engines.base import ConfigError, Engine
from launcher.devices.base import DevicePlugin
from launcher.runtimes.base import Runtime
from launcher.suggest import unknown


def engine(name: str) -> Engine:
    """A new instance of the engine plugin `name`; it keeps the client connections of one deployment."""
    return engine_class(name)()


def engine_class(name: str) -> type[Engine]:
    return _load("engine", name)


def device(kind: str) -> DevicePlugin:
    return cast(DevicePlugin, _load("device", kind)())


def runtime(name: str) -> Runtime:
    return cast(Runtime, _load("runtime", name)())


def import_path(group: str, name: str) -> str:
    """Where the plugin is, as `module:class`: for a process that has no time to look for it."""
    return _point(group, name).value


def names(group: str) -> Sequence[str]:
    return sorted(_points(group))


def _load(group: str, name: str) -> type:
    point = _point(group, name)
    try:
        return cast(type, point.load())
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"{group} {name!r} is installed, but {point.value} cannot be imported: {exc}") from exc


def _point(group: str, name: str) -> EntryPoint:
    points = _points(group)
    if name not in points:
        raise ConfigError(unknown(group, name, sorted(points)))
    return points[name]


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"rmlaunch.{group}s")}
