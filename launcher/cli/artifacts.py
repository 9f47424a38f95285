"""The verbs `artifact list`, `show` and `prune`: what build steps have made, who uses it, and what may go."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engines.base import ConfigError, DeploymentError
from launcher import bounded_json
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.output import duration, print_fields, print_json, print_table
from launcher.paths import artifacts_root, cache_root, state_root
from launcher.prepare import artifacts
from launcher.prepare.artifacts import BuildArtifact
from launcher.supervise import logs

_DAY_S = 86400.0
_LOG_LINES = 12


def list_(args: argparse.Namespace) -> int:
    """Print every artifact that is whole."""
    used = _used()
    found = [_summary(artifact, used) for artifact in artifacts.found(_store())]
    if args.json:
        print_json(found)
        return 0
    head = ("ID", "MODEL", "FORMAT", "TARGET", "SIZE", "AGE", "USED BY")
    print_table([head, *(_row(item) for item in found)])
    return 0


def _summary(artifact: BuildArtifact, used: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    profile = artifact.profile
    return {
        "id": artifact.id,
        "model": artifact.model_id,
        "format": artifact.format,
        "target": profile.target if profile else None,
        "compiler": f"{profile.compiler} {profile.compiler_version}".strip() if profile else None,
        "bytes": artifact.bytes,
        "made": datetime.fromtimestamp(artifact.made, timezone.utc).isoformat(timespec="seconds"),
        "age_s": round(time.time() - artifact.made),
        "used_by": list(used.get(artifact.id, ())),
        "path": str(artifact.path),
    }


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    age = duration(item["age_s"])
    users = ", ".join(item["used_by"]) or "–"
    return (item["id"], item["model"], item["format"], item["target"] or "–", _size(item["bytes"]), age, users)


def show(args: argparse.Namespace) -> int:
    """Print what made one artifact. Raises `RequestError` where there is no such artifact."""
    artifact = artifacts.find(_store(), args.id)
    shown = {**artifact.metadata, **_summary(artifact, _used()), "log": str(artifact.log)}
    lines = logs.tail(artifact.log)[-_LOG_LINES:]
    if args.json:
        print_json({**shown, "log_tail": lines})
        return 0
    print_fields(shown, lines)
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove what is left of builds that did not end; with --unused the artifacts too that no deployment uses."""
    if args.older_than is not None and args.older_than < 0:
        raise ConfigError(f"--older-than {args.older_than:g} must not be negative")
    store, ledger = _store(), Ledger(state_root())
    Deployments(state_root()).all()  # adopts those that serve without a supervisor
    with ledger.exclusive():  # no launch begins meanwhile
        plans, unreadable = _plans(ledger)
        if unreadable and (args.unused or args.older_than is not None):
            raise DeploymentError(
                f"the plan.json of {', '.join(unreadable)} cannot be read, so it cannot be told which artifacts are in "
                f"use; stop {unreadable[0]} first"
            )
        used = artifacts.users(store, plans)
        removed = list(
            artifacts.prune(
                store,
                used,
                unused=args.unused or args.older_than is not None,
                older_than_s=(args.older_than or 0.0) * _DAY_S,
            )
        )
    if args.json:
        print_json([{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in removed])
        return 0
    for item in removed:
        sys.stdout.write(f"{item.path.name}  {_size(item.bytes)}  {item.why}\n")
    sys.stderr.write(f"removed {len(removed)}, {_size(sum(item.bytes for item in removed))}\n")
    return 0


def _used() -> Mapping[str, tuple[str, ...]]:
    Deployments(state_root()).all()
    return artifacts.users(_store(), _plans(Ledger(state_root()))[0])


def _plans(ledger: Ledger) -> tuple[dict[str, str], list[str]]:
    """The plan.json of each deployment that may run, as it stands, by name; and the names of those that have none."""
    plans: dict[str, str] = {}
    unreadable: list[str] = []
    for name in ledger.running():
        try:
            plans[name] = bounded_json.read_bytes(ledger.deployments / name / "plan.json").decode(errors="replace")
        except (OSError, ValueError):  # noqa: PERF203  (one's trouble is not the others')
            unreadable.append(name)
    return plans, unreadable


def _store() -> Path:
    return artifacts_root(cache_root())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
