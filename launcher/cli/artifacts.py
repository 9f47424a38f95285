"""The verbs `artifact list`, `show` and `prune`: what build steps have made, who uses it, and what may go."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.cli import in_use
from launcher.output import duration, print_fields, print_json, print_table, size
from launcher.paths import artifacts_root, cache_root
from launcher.prepare import artifacts
from launcher.prepare.artifacts import BuildArtifact
from launcher.prepare.stores import users
from launcher.supervise import logs

_LOG_LINES = 12


def list_(args: argparse.Namespace) -> int:
    """Print every artifact that is whole."""
    used = users(_store(), in_use.plans())
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
    return (item["id"], item["model"], item["format"], item["target"] or "–", size(item["bytes"]), age, users)


def show(args: argparse.Namespace) -> int:
    """Print what made one artifact. Raises `RequestError` where there is no such artifact."""
    artifact = artifacts.find(_store(), args.id)
    shown = {**artifact.metadata, **_summary(artifact, users(_store(), in_use.plans())), "log": str(artifact.log)}
    lines = logs.tail(artifact.log)[-_LOG_LINES:]
    if args.json:
        print_json({**shown, "log_tail": lines})
        return 0
    print_fields(shown, lines)
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove what is left of builds that did not end; with --unused the artifacts too that no deployment uses."""
    store, unused = _store(), args.unused or args.older_than is not None
    with in_use.nobody_begins("artifacts", unused=args.unused, older_than=args.older_than) as plans:
        older_than_s = (args.older_than or 0.0) * in_use.DAY_S
        removed = list(artifacts.prune(store, users(store, plans), unused=unused, older_than_s=older_than_s))
    in_use.print_removed(removed, as_json=args.json)
    return 0


def _store() -> Path:
    return artifacts_root(cache_root())
