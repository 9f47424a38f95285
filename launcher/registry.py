"""Find engines, devices and runtimes by name through entry points: ours and those of other packages alike."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

from engines.base import ConfigError, Engine
from launcher.devices.base import DevicePlugin
from launcher.import_path import load
from launcher.paths import cache_root
from launcher.runtimes.base import Runtime
from launcher.suggest import unknown

_GROUPS = ("engine", "device", "runtime")


def engine(name: str) -> Engine:
    """Return a new instance of the engine plugin `name`; it keeps the client connections of one deployment."""
    return engine_class(name)()


def engine_class(name: str) -> type[Engine]:
    """Return the class of the engine plugin `name`. Raises `ConfigError` if it is unknown or cannot be imported."""
    return _load("engine", name)


def device(kind: str) -> DevicePlugin:
    """Return a new device plugin for `kind`. Raises `ConfigError` if it is unknown or cannot be imported."""
    return cast(DevicePlugin, _load("device", kind)())


def runtime(name: str) -> Runtime:
    """Return a new runtime plugin `name`. Raises `ConfigError` if it is unknown or cannot be imported."""
    return cast(Runtime, _load("runtime", name)())


def import_path(group: str, name: str) -> str:
    """Return `module:class` of a plugin, for a process that has no time to look it up. Raises `ConfigError`."""
    points = _points()[group]
    if name not in points:
        raise ConfigError(unknown(group, name, sorted(points)))
    return points[name]


def names(group: str) -> Sequence[str]:
    """Return the sorted names of all installed plugins of `group`: engine, device or runtime."""
    return sorted(_points()[group])


def _load(group: str, name: str) -> type:
    place = import_path(group, name)
    try:
        return cast(type, load(place))
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"{group} {name!r} is installed, but {place} cannot be imported: {exc}") from exc


@cache
def _points() -> dict[str, dict[str, str]]:
    """Return group → name → `module:class`.

    Importing `importlib.metadata`, and all that it imports, takes a tenth of a launch. So the answer is kept as long as
    the folders that Python looks in are the same: installing or removing a package changes its folder.
    """
    folders = [[path, Path(path).stat().st_mtime_ns] for path in sys.path if Path(path).is_dir()]
    key = [list(sys.version_info), folders]
    file = cache_root() / "entry-points.json"
    try:
        kept = json.loads(file.read_text())
        if kept["key"] == key:
            return cast("dict[str, dict[str, str]]", kept["points"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours to understand: looking again is always right
    from importlib.metadata import entry_points

    points = {
        group: {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=f"rmlaunch.{group}s")}
        for group in _GROUPS
    }
    from launcher.atomic import write_text

    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to fail
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(file, json.dumps({"key": key, "points": points}))
    return points
