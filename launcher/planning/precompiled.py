"""Models that somebody has compiled before: refused if another version of the SDK made them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from engines.base import Environment, PlanError

_CONFIG = "rbln_config.json"
_RELEASE = re.compile(r"optimum-rbln\s*==\s*([\w.+!]+)")


def check(model_format: str, path: Path, environment: Environment) -> None:
    """Raise `PlanError` if another SDK than the serving one compiled the model at `path`; both versions are named.

    A file that does not say its version passes: the SDK itself may still refuse it.
    """
    if model_format != "rbln" or not (path / _CONFIG).is_file():
        return
    config = _read(path / _CONFIG)
    if "_meta" in config:
        raise PlanError(
            f"model.source: {path} was compiled by an SDK that kept `_meta` in {_CONFIG}, which newer ones do not "
            "read; compile it again: give the original model as model.source"
        )
    made, serving = config.get("optimum_rbln_version"), _serving(environment)
    if isinstance(made, str) and serving and _release(made) != _release(serving):
        raise PlanError(
            f"model.source: {path} was compiled by optimum-rbln {made}, but {environment.name} serves with {serving}; "
            "give the original model as model.source, and it is compiled again, or serve with the version that made "
            f"it: engine.environment=/path/of/one, or engine.environments.rbln.requirements with optimum-rbln=={made}"
        )


def _read(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as exc:
        raise PlanError(f"model.source: {file} cannot be read: {exc}; compile the model again") from exc
    return config if isinstance(config, dict) else {}


def _serving(environment: Environment) -> str:
    """Return the pinned version, or the installed one in an environment of the user's; empty if unknown."""
    for requirement in environment.requirements:
        if pinned := _RELEASE.match(requirement):
            return pinned[1]
    installed = Path(environment.site_packages).glob("optimum_rbln-*.dist-info")
    return next((folder.name.removesuffix(".dist-info").partition("-")[2] for folder in installed), "")


def _release(version: str) -> tuple[str, ...]:
    """Return the minor release: `0.12.0+gab12` → ("0", "12"). Its builds read each other's models."""
    return tuple(re.split(r"[.+]", version)[:2])
