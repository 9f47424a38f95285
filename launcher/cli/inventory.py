"""The packages of environments: those installed, those that engines' configs ask for, and where they can be had."""

from __future__ import annotations

import dataclasses
import netrc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engines.base import Environment
from launcher import registry
from launcher.config.schema import EnvironmentConf
from launcher.devices.base import Portal
from launcher.paths import shipped, user_config
from launcher.planning import environments

#: where uv and pip are told of indexes, with their passwords
_INDEX_VARIABLES = (
    "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS",
)  # fmt: skip
_PINNED = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?\s*==\s*([^\s;]+)")


def packages(environment: Environment) -> Mapping[str, str]:
    """Name → version: what is installed there, or what it would be made of as far as that is pinned."""
    found = {}
    for folder in Path(environment.site_packages).glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        found[name.replace("_", "-").lower()] = version
    if found:
        return found
    return {match[1].lower(): match[2] for item in environment.requirements if (match := _PINNED.match(item))}


def environment_of(name: str, kind: str, cache: Path) -> Environment | None:
    """Return the environment of engine `name` on `kind`, by its config alone; None where that cannot be told."""
    conf = _engine_conf(name)
    engine = registry.engine(name)
    fields = {field.name for field in dataclasses.fields(engine.Options)}
    options = {**dataclasses.asdict(engine.Options()), **{key: conf[key] for key in fields & conf.keys()}}
    key = engine.environment_key(kind, options)
    choice = conf.get("environment", "managed")
    wanted = conf.get("environments", {}).get(key)
    if choice == "managed" and not wanted:
        return None
    given = EnvironmentConf(**wanted) if wanted else None
    return environments.describe(f"{name}-{key}", choice, given, cache)


def _engine_conf(name: str) -> Mapping[str, Any]:
    """The engine's file as it is written: composing it would cost more than all else that is told."""
    import yaml

    for folder in (shipped("conf"), user_config()):
        try:
            data = yaml.safe_load((folder / "engine" / f"{name}.yaml").read_text())
        except (OSError, yaml.YAMLError):
            continue
        return data if isinstance(data, dict) else {}
    return {}


def without_account(requirements: Iterable[str], portals: Mapping[str, Portal]) -> Iterator[str]:
    """Yield a sentence for each of `requirements` whose portal has no password here, as far as can be told."""
    for item in requirements:
        match = _PINNED.match(item)
        portal = portals.get(match[1].lower()) if match else None
        if portal and not has_account(portal.index):
            yield f"{item} is only in {portal.words} ({portal.index})"


def has_account(index: str) -> bool:
    """Return whether uv finds a password for the host of `index`, or another place that has its packages."""
    host = urlsplit(index).hostname or ""
    told = " ".join(os.environ.get(name, "") for name in _INDEX_VARIABLES).replace(",", " ").split()
    if any("@" in url and urlsplit(url).hostname == host for url in told if "://" in url):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
