"""The keys and values that an override can have, for completion: from the folders of configs and the schema."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.errors import RmLaunchError
from launcher.paths import shipped, user_config

#: config groups, and what an option of each is
CONFIG_GROUPS = {
    "engine": "the serving program",
    "device": "what it runs on",
    "model": "what is served",
    "runtime": "where the program runs",
    "policy": "what auto aims at",
}
_HIDDEN = ("base_", "schema")  #: how the names of files begin that are no options by themselves


def overrides(given: Sequence[str], current: str, config_dir: str | None) -> Iterator[tuple[str, str]]:
    """Yield overrides of a launch that `current` may become; `given` are those before it."""
    key, equals, _ = current.partition("=")
    chosen = {item.partition("=")[0] for item in given}
    if equals and key in CONFIG_GROUPS:
        yield from _options(key, current, config_dir)
        return
    yield from ((f"{group}=", said) for group, said in CONFIG_GROUPS.items() if not equals and group not in chosen)
    if not current:  # the keys of a config are many, and it takes a while to load what they are
        return
    if key.startswith("e") and "." in current:
        engine = next((item.partition("=")[2] for item in given if item.startswith("engine=")), "")
        yield from _fields(_engine(engine), "engine.", current)
    from launcher.config import schema

    yield from _fields(schema.LaunchConfig, "", current)


def gateway_overrides(current: str, config_dir: str | None) -> Iterator[tuple[str, str]]:
    """Yield overrides of the gateway that `current` may become."""
    from launcher.config.gateway import GatewayConf

    if current.startswith("gateway="):
        yield from _options("gateway", current, config_dir)
        return
    yield "gateway=", "the gateway's config"
    yield "gateway.", ""
    yield "name=", ""
    yield from _fields(GatewayConf, "gateway.", current)


def _options(group: str, current: str, config_dir: str | None) -> Iterator[tuple[str, str]]:
    """Yield `group=option`; after a comma, as in a multirun, `group=one,option`."""
    value = current.partition("=")[2]
    before = value.rpartition(",")[0]
    said = [*before.split(",")] if before else []
    folders = [shipped("conf"), user_config(), *([Path(config_dir)] if config_dir else [])]
    names = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
    for name in sorted(names - {*said}):
        if not name.startswith(_HIDDEN):
            yield f"{group}={before},{name}" if before else f"{group}={name}", ""


def _engine(name: str) -> type[Any]:
    """The schema of engine `name`, its own keys included; of those that all have where that is not known."""
    from launcher.config.schema import EngineConf, engine_conf

    try:
        return engine_conf(name) if name and name != "auto" else EngineConf
    except RmLaunchError:
        return EngineConf


def _fields(kind: type[Any], prefix: str, current: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a dataclass: `key=`, or `key.` where it has keys of its own, which follow once it is typed."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        inner = _dataclass(hints[field.name])
        if inner is None:
            yield from ((word, "") for word in _values(key, hints[field.name], current))
        elif current.startswith(f"{key}."):
            yield from _fields(inner, f"{key}.", current)
        else:
            yield f"{key}.", ""


def _values(key: str, hint: object, current: str) -> Iterable[str]:
    if not current.startswith(f"{key}="):
        return (f"{key}=",)
    return (f"{key}=true", f"{key}=false") if hint is bool else ()


def _dataclass(hint: object) -> type[Any] | None:
    """The dataclass that a field holds; None for any other field."""
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and typing.get_origin(hint) is not dict:
            return kind
    return None
