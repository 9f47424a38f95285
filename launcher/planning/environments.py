"""Isolated environments: one per engine × device, made with uv, found again by the hash of their contents."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import sysconfig
from pathlib import Path

from engines.base import ConfigError, Environment
from launcher.config.schema import EnvironmentConf
from launcher.paths import environments_root


def describe(name: str, choice: str, conf: EnvironmentConf | None, cache: Path) -> Environment:
    """Return the environment that `choice` (engine.environment) means for `name`; nothing is made.

    Looks at the machine only where the user owns the environment.
    """
    if choice == "current":
        return Environment(name, sys.prefix, _running_python(), managed=False, library_dir=_library_dir())
    if choice != "managed":
        return _owned(name, Path(choice).expanduser().absolute())
    conf = conf or EnvironmentConf()
    python = conf.python or _running_python()
    what = [python, platform.machine(), conf.requirements, conf.overrides, conf.indexes]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    return Environment(
        name=name,
        path=str(environments_root(cache) / f"{name}-{key}"),
        python=python,
        requirements=tuple(conf.requirements),
        overrides=tuple(conf.overrides),
        indexes=tuple(conf.indexes),
        library_dir=_library_dir() if python == _running_python() else "",
    )


def _owned(name: str, path: Path) -> Environment:
    """Return an environment of the user's own; `path` is its folder or its Python."""
    folder = path.parent.parent if path.is_file() else path
    found = [match for place in folder.glob("lib/python3.*") if (match := re.fullmatch(r"python3\.(\d+)", place.name))]
    if not found:
        raise ConfigError(
            f"engine.environment={str(path)!r} is neither a Python environment nor its python; "
            "give managed, current, or the folder that has bin/python and lib/python3.x"
        )
    newest = max(found, key=lambda match: int(match[1]))
    named = re.fullmatch(r"python(3\.\d+)", path.name)
    return Environment(name, str(folder), named[1] if named else f"3.{newest[1]}", managed=False)


def _running_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _library_dir() -> str:
    """Return the library folder of our own Python, which environments of the same version share; empty if unknown."""
    return str(sysconfig.get_config_var("LIBDIR") or "")
