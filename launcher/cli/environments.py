"""The verbs `env list`, `create` and `prune`: the environments of engines, who uses them, and what may go."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import ConfigError, LaunchPlan
from launcher import registry
from launcher.cli import in_use
from launcher.output import duration, note, print_json, print_table, size
from launcher.paths import cache_root, environments_root
from launcher.prepare import environment_store
from launcher.prepare.environment_store import Made, used_by


def list_(args: argparse.Namespace) -> int:
    """Print every environment that is whole."""
    store = _store()
    used = used_by(store, in_use.plans())
    found = [_summary(one, used) for one in environment_store.found(store)]
    if args.json:
        print_json(found)
        return 0
    head = ("ID", "ENGINE", "DEVICE", "PYTHON", "SIZE", "LAST USED", "USED BY")
    print_table([head, *(_row(one) for one in found)])
    return 0


def create(args: argparse.Namespace) -> int:
    """Make the environments that a launch would make, ahead of it, and print their folders.

    Raises `ConfigError` where it would make none, and `PrepareError` where they cannot be made.
    """
    from launcher.cli.plan import planned
    from launcher.prepare import environments
    from launcher.prepare.steps import environments_of
    from launcher.progress import Progress

    reasons, plan = planned(args.overrides, args.config_dir)
    for reason in reasons:
        note(reason)
    progress = Progress()
    managed = [one for one in dict.fromkeys(environments_of(plan)) if one.managed]
    if not managed:
        raise ConfigError(_none(plan))
    for one in managed:
        environments.ensure(one, progress)
        sys.stdout.write(f"{one.path}\n")
        sys.stdout.flush()
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove what was not made to the end; with --unused the environments too that nobody uses."""
    store, unused = _store(), args.unused or args.older_than is not None
    with in_use.nobody_begins("environments", unused=args.unused, older_than=args.older_than) as plans:
        used = used_by(store, plans) if unused else {}
        older_than_s = (args.older_than or 0.0) * in_use.DAY_S
        removed = list(environment_store.prune(store, used, unused=unused, older_than_s=older_than_s))
    in_use.print_removed(removed, as_json=args.json)
    if removed and not args.json:
        note("what uv keeps for the next environments stays; `uv cache clean` empties it")
    return 0


def _none(plan: LaunchPlan) -> str:
    if plan.container is not None:
        return f"runtime={plan.runtime} has an image, and no environment; `rmlaunch image build` makes it"
    if not plan.argv:
        return f"engine={plan.engine} runs nothing here, so it has no environment; choose another engine"
    return f"engine.environment={plan.environment.path} is yours, and nothing is made there; leave it out"


def _summary(one: Made, used: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fields of one environment as --json prints them."""
    engine, device = _parts(one.name)
    return {
        "id": one.id,
        "engine": engine,
        "device": device,
        "python": one.python,
        "bytes": one.size_bytes,
        "last_used_s": round(time.time() - one.last_used),
        "used_by": list(used.get(one.id, ())),
        "path": str(one.path),
    }


def _parts(name: str) -> tuple[str | None, str | None]:
    """Part `llamacpp-cpu` into the engine and its device; None for both in one that is of a conversion."""
    for engine in sorted(registry.names("engine"), key=len, reverse=True):
        if name.startswith(f"{engine}-"):
            return engine, name.removeprefix(f"{engine}-")
    return None, None


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    users = ", ".join(one["used_by"]) or "–"
    places = (one["engine"] or "–", one["device"] or "–", one["python"])
    return (one["id"], *places, size(one["bytes"]), duration(one["last_used_s"]), users)


def _store() -> Path:
    return environments_root(cache_root())
