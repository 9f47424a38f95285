"""Overrides → `LaunchConfig`, with Hydra; nothing of Hydra or OmegaConf is seen outside this module.

Pure but for reading config files: the user's folder and `config_dir` are on the search path, after ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

from engines.base import ConfigError
from launcher import schema
from launcher.paths import shipped, user_config
from launcher.schema import LaunchConfig
from launcher.suggest import did_you_mean, unknown

HYDRA_VERSION_BASE = "1.3"

#: mappings whose keys are not ours to know
FREE_FORM = (
    "engine.args.",
    "engine.env.",
    "engine.images.",
    "engine.environments.",
    "model.build.",
    "model.engine_args.",
)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> LaunchConfig:
    """The configuration that `overrides`, in Hydra's grammar, ask for. Raises `ConfigError` with the way out."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with (
        readable_errors(),
        hydra_of_our_own(config_dir),
        initialize_config_dir(str(shipped("conf")), version_base=HYDRA_VERSION_BASE),
    ):
        composed = hydra_compose("config", list(overrides))
        _refuse_added_keys(composed, "")
        return cast(LaunchConfig, OmegaConf.to_object(composed))


def normalized(overrides: Sequence[str]) -> list[str]:
    """What a user wrote in Hydra's grammar, so that nobody has to know all of it. Not to be done twice.

    A new key of a free-form mapping is written with `++`; a prompt is taken as it is, commas and brackets too, unless
    it is quoted for Hydra already.
    """
    return [_for_hydra(item) for item in overrides]


def _for_hydra(item: str) -> str:
    key, equals, value = item.partition("=")
    if key.startswith(FREE_FORM):
        return f"++{item}"
    if key == "prompt" and value and value[0] not in "'\"" and value != "null":
        # In Hydra's quoted strings a backslash counts only before a quote, or at the end.
        quotable = re.sub(r"(\\*)'", r"\1\1\\'", value)
        trailing = len(quotable) - len(quotable.rstrip("\\"))
        return f"{key}{equals}'{quotable}{chr(92) * trailing}'"
    return item


def options(group: str) -> list[str]:
    """The names that `group=` takes, the user's own included."""
    folders = [shipped("conf") / group, user_config() / group]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


@contextmanager
def hydra_of_our_own(config_dir: str | None = None) -> Iterator[None]:
    """Hydra knows our schemas and the user's folders while the block runs, and is as it was before afterwards.

    Hydra's state is global: the application that we run in may be a Hydra application too.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    folders = [*([Path(config_dir).absolute()] if config_dir else []), user_config()]
    if config_dir and not folders[0].is_dir():
        raise ConfigError(f"--config-dir {config_dir!r} is not a folder; give the folder that holds engine/, model/ …")
    schema.register()
    plugin, hydra = _search_path_plugin(), GlobalHydra.instance()
    Plugins.instance().register(plugin)
    before = hydra.hydra, plugin.folders
    hydra.hydra, plugin.folders = None, [folder for folder in folders if folder.is_dir()]
    try:
        yield
    finally:
        hydra.hydra, plugin.folders = before


@cache
def _search_path_plugin() -> Any:
    """The plugin class that puts its `folders` on Hydra's search path; one, since Hydra knows plugins by class."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserConfigs(SearchPathPlugin):
        folders: ClassVar[list[Path]] = []

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in self.folders:
                search_path.append("rmlaunch", f"file://{folder}")

    return UserConfigs


# ------------------------------------------------------------------------------------------------------------ errors


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise for a user's mistake into one `ConfigError` that names the way out."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except MissingConfigException as exc:
        raise ConfigError(_unknown_option(exc.missing_cfg_file, exc.options) or _first_line(exc)) from exc
    except (HydraException, OmegaConfBaseException) as exc:
        raise ConfigError(_explain(exc)) from exc


def _unknown_option(missing: str | None, listed: Sequence[str] | None) -> str | None:
    if not missing or "/" not in missing:
        return None
    group, _, name = missing.rpartition("/")
    known = sorted({*(o for o in listed or () if not o.startswith("base_")), *options(group)})
    return unknown(group, name, known)


def _explain(exc: Exception) -> str:
    """One line for `exc`, from the innermost cause: Hydra's own first line only repeats the override."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    if isinstance(exc, OverrideParseException):
        return f"cannot read {exc.override!s:.100}; an override is written key=value ({_second_line(exc)})"
    inner: BaseException = exc
    while inner.__cause__ is not None:
        inner = inner.__cause__
    no_group = re.search(r"Could not override '([^'@]+)(?:@[^']*)?'\.", str(exc))
    if isinstance(inner, OmegaConfBaseException):
        key = inner.full_key or ""
        if isinstance(inner, ConfigKeyError) or (no_group and "not in" in str(inner)):
            return _unknown_key(
                key or (no_group.group(1) if no_group else ""), _fields(getattr(inner, "parent_node", None))
            )
        return f"{key}: {_first_line(inner)}" if key else _first_line(inner)
    if no_group:
        return _unknown_key(no_group.group(1), [])
    return _first_line(exc)


def _unknown_key(key: str, siblings: Sequence[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    fields = siblings or sorted(LaunchConfig.__dataclass_fields__)
    hint = did_you_mean(leaf, fields, prefix=f"{parent}." if parent else "")
    return f"unknown key {key!r}; {hint}keys{' of ' + parent if parent else ''}: {', '.join(fields)}"


def _refuse_added_keys(node: object, path: str) -> None:
    """`+key=value` would slip an unknown key past the schema, where nothing reads it."""
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", None)
    for key in node:
        name = f"{path}{key!s}"
        if fields is not None and key not in fields:
            raise ConfigError(_unknown_key(name, sorted(fields)))
        _refuse_added_keys(node._get_node(key), f"{name}.")


def _fields(node: object) -> list[str]:
    from omegaconf import DictConfig

    return sorted(str(key) for key in node) if isinstance(node, DictConfig) else []


def _second_line(exc: BaseException) -> str:
    return next(iter(str(exc).splitlines()[1:2]), "").strip()


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
