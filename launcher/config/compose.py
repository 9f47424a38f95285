"""Overrides → `LaunchConfig`, with Hydra; nothing outside this module sees Hydra or OmegaConf.

Pure but for reading config files: the user's folder and `config_dir` are on the search path, after ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from engines.base import ConfigError
from launcher.config import schema
from launcher.config.schema import LaunchConfig
from launcher.paths import shipped, user_config
from launcher.suggest import did_you_mean, unknown

if TYPE_CHECKING:
    from launcher.config.gateway import GatewayConf

HYDRA_VERSION_BASE = "1.3"

_IDENTITIES = ("engine.name", "device.kind", "runtime.name")

#: mappings with free keys: everything below a key of the engine, and a few others
FREE_FORM = re.compile(
    r"engine\.\w+\.|model\.build\.|model\.engine_args\.|policy\.engines\.|gateway\.(?:routes|deployments|keys)\."
)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> LaunchConfig:
    """Return the config for `overrides`, in Hydra's grammar. Raises `ConfigError` that says what to change."""
    chosen = any(item.startswith("engine=") and item != "engine=auto" for item in overrides)
    for item in overrides:
        _refuse_identity(item)
    hint = "" if chosen else "with engine=auto only these can be set, so choose engine=…"
    return cast(LaunchConfig, _composed("config", overrides, config_dir, hint))


def compose_gateway(overrides: Sequence[str], config_dir: str | None = None) -> GatewayConf:
    """Return the config of `rmlaunch gateway` for `overrides`. Raises `ConfigError` as `compose` does."""
    return cast("GatewayConf", _composed("gateway", overrides, config_dir).gateway)


def _composed(root: str, overrides: Sequence[str], config_dir: str | None, engine_hint: str = "") -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with (
        readable_errors(engine_hint),
        hydra_of_our_own(config_dir),
        initialize_config_dir(str(shipped("conf")), version_base=HYDRA_VERSION_BASE),
    ):
        composed = hydra_compose(root, list(overrides))
        _refuse_added_keys(composed, "")
        return OmegaConf.to_object(composed)


def _refuse_identity(override: str) -> None:
    """Refuse `engine.name=triton`, which would change the name and leave everything else as it was."""
    key, _, value = override.lstrip("+").partition("=")
    if key in _IDENTITIES:
        group = key.partition(".")[0]
        raise ConfigError(f"{key} follows from the option that is chosen; write {group}={value}")


def normalized(overrides: Sequence[str]) -> list[str]:
    """Return a user's words as Hydra's grammar wants them, so that nobody has to know all of it. Call it once only.

    A new key of a free-form mapping gets its `++`. A prompt is taken as it is, commas and brackets too, unless it is
    quoted for Hydra already. A model's source may have a `!`.
    """
    return [_for_hydra(item) for item in overrides]


def _for_hydra(item: str) -> str:
    key, equals, value = item.partition("=")
    if FREE_FORM.match(key):
        return f"++{item}"
    if key == "prompt" and value and value[0] not in "'\"" and value != "null":
        return f"{key}{equals}{quoted(value)}"
    if key == "model.source" and "!" in value and not set("'\",") & set(value):  # with a comma, it is a sweep
        return f"{key}{equals}{quoted(value)}"
    return item


def quoted(text: str) -> str:
    """Return `text` as a string in Hydra's grammar: a backslash counts only before a quote, or at the end."""
    quotable = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(quotable) - len(quotable.rstrip("\\"))
    return f"'{quotable}{chr(92) * trailing}'"


def options(group: str) -> list[str]:
    """Return the names that `group=` takes, the user's own included."""
    folders = [shipped("conf") / group, user_config() / group]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


@contextmanager
def hydra_of_our_own(config_dir: str | None = None) -> Iterator[None]:
    """Give Hydra our schemas and the user's folders while the block runs; afterwards it is as before.

    Hydra's state is global: the application that we run in may be a Hydra application too.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    folders = [*([Path(config_dir).absolute()] if config_dir else []), user_config()]
    if config_dir and not folders[0].is_dir():
        raise ConfigError(f"--config-dir {config_dir!r} is not a folder; give the folder that holds engine/, model/ …")
    schema.register()
    plugin = _search_path_plugin()
    Plugins.instance().register(plugin)
    before = GlobalHydra.instance().hydra, plugin.folders
    GlobalHydra.instance().hydra, plugin.folders = None, [folder for folder in folders if folder.is_dir()]
    try:
        yield
    finally:
        # Asked for anew: Hydra's own clean-up puts another instance in its place.
        GlobalHydra.instance().hydra, plugin.folders = before


@cache
def _search_path_plugin() -> Any:
    """Return the one plugin class that puts its `folders` on Hydra's search path: Hydra knows plugins by class."""
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
def readable_errors(engine_hint: str = "") -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors for a user's mistake into one `ConfigError` that says what to change.

    `engine_hint` is appended if a key of the engine is unknown.
    """
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except MissingConfigException as exc:
        raise ConfigError(_unknown_option(exc.missing_cfg_file, exc.options) or _first_line(exc)) from exc
    except (HydraException, OmegaConfBaseException) as exc:
        text = _explain(exc)
        about_engine = "unknown key 'engine." in text or "EnvironmentConf" in text
        raise ConfigError(f"{text}; {engine_hint}" if engine_hint and about_engine else text) from exc


def _unknown_option(missing: str | None, listed: Sequence[str] | None) -> str | None:
    if not missing or "/" not in missing:
        return None
    group, _, name = missing.rpartition("/")
    known = sorted({*(o for o in listed or () if not o.startswith("base_")), *options(group)})
    return unknown(group, name, known)


def _explain(exc: Exception) -> str:
    """Return one line for `exc`, from the innermost cause: Hydra's own first line only repeats the override."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    if isinstance(exc, OverrideParseException):
        shown = str(exc.override).removeprefix("++")
        return f"cannot read {shown[:100]!r}; an override is written key=value ({_detail(exc)})"
    inner: BaseException = exc
    deeper = exc.__cause__ or exc.__context__
    while deeper is not None:
        if isinstance(deeper, OmegaConfBaseException) and deeper.full_key:  # one without is still unformatted
            inner = deeper
        deeper = deeper.__cause__ or deeper.__context__
    no_group = re.search(r"Could not override '([^'@]+)(?:@[^']*)?'\.", str(exc))
    named = no_group.group(1) if no_group else ""
    if not isinstance(inner, OmegaConfBaseException):
        return _unknown_key(named, []) if named and "@" not in str(exc) else _first_line(exc)
    key = inner.full_key or named
    if isinstance(inner, ConfigKeyError) or _renamed(key) or (no_group and "not in" in str(inner)):
        return _unknown_key(key, _fields(getattr(inner, "parent_node", None)))
    return f"{key}: {_first_line(inner)}" if key else _first_line(inner)


def _renamed(key: str) -> str | None:
    from launcher.config.gateway import RENAMED  # a launch has nothing to do with the gateway's config

    return RENAMED.get(key)


def _unknown_key(key: str, siblings: Sequence[str]) -> str:
    if new := _renamed(key):
        return f"{key} is called {new} now"
    parent, _, leaf = key.rpartition(".")
    known = [
        name for name in siblings or ([] if parent else sorted(LaunchConfig.__dataclass_fields__)) if name != "hydra"
    ]
    where = f"keys{' of ' + parent if parent else ''}: {', '.join(known) or 'none'}"
    return f"unknown key {key!r}; {did_you_mean(leaf, known, prefix=f'{parent}.' if parent else '')}{where}"


def _refuse_added_keys(node: object, path: str) -> None:
    """Refuse `+key=value`: an unknown key would slip past the schema, and nothing would read it."""
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


def _detail(exc: BaseException) -> str:
    """Return Hydra's reason for refusing an override, without the repeated override and the link."""
    lines = (line.strip() for line in str(exc).splitlines())
    return next((line for line in lines if line and not line.startswith(("Error parsing override", "See "))), "")


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
