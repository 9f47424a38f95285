"""Keep composed configs on disk: composing is pure, so equal words over equal files need it once.

Importing Hydra and composing costs more than everything else that stands between the shell and the engine's program.
A kept config is used only where every file that could have played a part, the words and our version are the same.
Configs that look outside themselves (`${oc.env:…}`) and configs with secrets are never kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher import dataclass_json
from launcher.config.schema import ContainerConf, EngineConf, LaunchConfig, RuntimeConf, engine_conf
from launcher.masking import is_secret, mask_url
from launcher.paths import cache_root, shipped, user_config

_KEPT = 64
_NEVER_KEPT = ("hydra.", "hydra/", "prompt=", "api_key=", "engine.env")
_RESOLVER = re.compile(r"\$\{[^{}]*:")


def compose(overrides: Sequence[str], config_dir: str | None = None) -> LaunchConfig:
    """Return the kept config for `overrides`; call `launcher.config.compose.compose` if none fits."""

    def anew() -> LaunchConfig:
        from launcher.config import compose

        return compose.compose(overrides, config_dir)

    # These look outside, may look in other folders, or hold prompts and secrets.
    if any(_RESOLVER.search(item) or item.lstrip("+").startswith(_NEVER_KEPT) for item in overrides):
        return anew()
    folders = [shipped("conf"), user_config(), *([Path(config_dir).absolute()] if config_dir else [])]
    return _kept(_key(overrides, folders), folders[1:], anew)


def _kept(key: str, foreign: Sequence[Path], anew: Callable[[], LaunchConfig]) -> LaunchConfig:
    file = cache_root() / "configs" / f"{key}.json"
    try:
        data = json.loads(file.read_text())
        os.utime(file)
        return _load(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        pass  # not there, or not ours to understand: composing again is always right
    config = anew()
    if not _looks_outside(foreign) and not _has_secrets(config):
        _keep(file, config)
    return config


def _key(overrides: Sequence[str], folders: Iterable[Path]) -> str:
    from hashlib import sha256

    what: list[object] = [_our_version(), *overrides]
    for folder in folders:
        for parent, _, files in os.walk(folder):
            for name in sorted(files):
                path = os.path.join(parent, name)  # noqa: PTH118  (some fifty files, on the hot path)
                stat = os.stat(path)  # noqa: PTH116
                what.append([path, stat.st_size, stat.st_mtime_ns])
    return sha256(json.dumps(what).encode()).hexdigest()[:24]


def _our_version() -> list[int]:
    """Return the change times of all code that decides what a config means."""
    folder = Path(__file__).parent
    engines = folder.parents[1] / "engines"  # they declare keys of their own
    ours = (*sorted(folder.glob("*.py")), folder.parent / "dataclass_json.py", *sorted(engines.glob("*.py")))
    return [file.stat().st_mtime_ns for file in ours]


def _load(data: Any) -> LaunchConfig:
    # The fields say EngineConf and RuntimeConf; which of their subclasses they were, only the file knows.
    kind = engine_conf(data["engine"]) if data["engine"] else EngineConf
    engine = dataclass_json.load(kind, data["config"]["engine"])
    runtime = dataclass_json.load(ContainerConf if data["container"] else RuntimeConf, data["config"]["runtime"])
    return dataclass_json.load(LaunchConfig, {**data["config"], "engine": engine, "runtime": runtime})


def _keep(file: Path, config: LaunchConfig) -> None:
    from launcher.atomic import remove_partials, write_text

    own = "" if type(config.engine) is EngineConf else config.engine.name
    container = isinstance(config.runtime, ContainerConf)
    data = {"engine": own, "container": container, "config": dataclasses.asdict(config)}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(file, json.dumps(data))
        remove_partials(file.parent)
        newest_first = sorted(file.parent.glob("*.json"), key=lambda kept: kept.stat().st_mtime, reverse=True)
        for old in newest_first[_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return  # a cache that cannot be written is no reason to fail


def _looks_outside(folders: Iterable[Path]) -> bool:
    files = (file for folder in folders for file in folder.rglob("*.yaml"))
    return any(_RESOLVER.search(file.read_text(errors="replace")) for file in files)


def _has_secrets(node: object) -> bool:
    """Return whether any key is named like a secret and set, or any text holds the password of a URL."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    if isinstance(node, dict):
        return any((is_secret(str(key)) and value is not None) or _has_secrets(value) for key, value in node.items())
    if isinstance(node, list):
        return any(_has_secrets(item) for item in node)
    return isinstance(node, str) and mask_url(node) != node
