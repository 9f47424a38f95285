"""The folders: the shipped conf/ and templates/, and the user's cache, state and config."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """Return the folder `conf` or `templates`: inside the package in a wheel, beside it in a checkout."""
    packaged = _PACKAGE / folder
    return packaged if packaged.is_dir() else _PACKAGE.parent / folder


def cache_root() -> Path:
    """Return the folder of environments, models and artifacts: safe to delete, costly to make again."""
    return _root("RMLAUNCH_CACHE", "XDG_CACHE_HOME", ".cache")


def artifacts_root(cache: Path) -> Path:
    """Return the folder below `cache` that holds the output of all build steps."""
    return cache / "artifacts"


def environments_root(cache: Path) -> Path:
    """Return the folder below `cache` that holds all environments."""
    return cache / "environments"


def state_root() -> Path:
    """Return the folder of deployments that run now, and of their logs."""
    return _root("RMLAUNCH_STATE", "XDG_STATE_HOME", ".local/state")


def user_config() -> Path:
    """Return the folder of the user's own config groups."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "rmlaunch"


def _root(own: str, xdg: str, fallback: str) -> Path:
    chosen = os.environ.get(own)
    return Path(chosen).absolute() if chosen else _xdg(xdg, fallback) / "rmlaunch"


def _xdg(variable: str, fallback: str) -> Path:
    chosen = os.environ.get(variable, "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    return Path(chosen) if chosen.startswith("/") else Path.home() / fallback
