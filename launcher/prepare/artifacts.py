"""The store of build artifacts: one folder each, keyed by all that it depends on; listed, shown and pruned.

<cache>/artifacts/<model>-<format>-<key>/                 whole, with .rmlaunch.json in it
<cache>/artifacts/<model>-<format>-<key>.log              output of the command
<cache>/artifacts/.<model>-<format>-<key>.lock            held while it is being made
<cache>/artifacts/.<model>-<format>-<key>.partial-…/      being made, or left by a killed process
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.base import BuildProfile, BuildStep, RequestError
from launcher import dataclass_json
from launcher.atomic import write_text
from launcher.masking import mask_argv, mask_env, mask_url
from launcher.prepare.stores import Pruned, half_made, removed
from launcher.suggest import unknown

#: file in the artifact's folder; hidden, because a compiler may write a metadata.json of its own
METADATA = ".rmlaunch.json"


@dataclass(frozen=True, slots=True)
class BuildArtifact:
    """A whole artifact. `profile` is None if it was made before profiles were written down."""

    id: str
    model_id: str
    profile: BuildProfile | None
    path: Path
    #: argv, environment, step, bytes, made (Unix time), seconds; empty if `profile` is None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """The model format, from the id <model>-<format>-<key>."""
        return self.profile.interface if self.profile else self.id.rsplit("-", 2)[-2] if "-" in self.id else ""

    @property
    def log(self) -> Path:
        """The file with the output of the command that made it."""
        return self.path.with_name(f"{self.id}.log")

    @property
    def made(self) -> float:
        """The time when it was made, in Unix time."""
        return float(self.metadata.get("made") or self.path.stat().st_mtime)

    @property
    def bytes(self) -> int:
        """The size on disk, measured now if it was not written down."""
        return int(self.metadata.get("bytes") or _size(self.path))


def describe(step: BuildStep, partial: Path, began: float) -> None:
    """Write into `partial`, which `step` has just filled, the command and inputs that made it. Secrets are masked."""
    profile = dataclasses.asdict(step.profile) if step.profile else None
    if profile and "env" in profile["flags"]:
        profile["flags"] = {**profile["flags"], "env": mask_env(profile["flags"]["env"])}
    data = {
        "id": Path(step.output).name,
        "model_id": step.model_id,
        "step": step.name,
        "profile": profile,
        "argv": list(mask_argv(step.argv)),
        "env": mask_env(step.env),
        "environment": {
            "name": step.environment.name,
            "path": step.environment.path,
            "python": step.environment.python,
            "requirements": [mask_url(item) for item in step.environment.requirements],
        },
        "made": round(began, 3),
        "seconds": round(time.time() - began, 3),
        "bytes": _size(partial),
    }
    write_text(partial / METADATA, json.dumps(data, indent=1, default=str))


def found(store: Path) -> list[BuildArtifact]:
    """Return every whole artifact, by id."""
    if not store.is_dir():
        return []
    return [_read(path) for path in sorted(store.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def find(store: Path, name: str) -> BuildArtifact:
    """Return the artifact whose id is `name`, or the only one that begins so. Raises `RequestError`."""
    known = {artifact.id: artifact for artifact in found(store)}
    meant = [name] if name in known else [key for key in known if key.startswith(name)]
    if len(meant) != 1:
        if meant:
            raise RequestError(f"artifact {name!r} can be any of: {', '.join(meant)}")
        raise RequestError(unknown("artifact", name, sorted(known)))
    return known[meant[0]]


def prune(store: Path, used: Collection[str], *, unused: bool, older_than_s: float = 0.0) -> Iterator[Pruned]:
    """Remove the leftovers of unfinished builds; with `unused`, also the artifacts that are not in `used`.

    The caller holds the ledger, so that nobody begins to use an artifact meanwhile. Builds that run are left alone.
    """
    if not store.is_dir():
        return
    for name, path in half_made(store):
        yield from removed(store, name, [path], "half-made")
    for log in sorted(store.glob("*.log")):
        if not log.with_suffix("").exists():
            yield from removed(store, log.name.removesuffix(".log"), [log], "log of a build that failed")
    if unused:
        limit = time.time() - older_than_s
        for artifact in found(store):
            if artifact.id not in used and artifact.made <= limit:
                yield from removed(store, artifact.id, [artifact.path, artifact.log], "unused")


def _read(path: Path) -> BuildArtifact:
    try:
        data = json.loads((path / METADATA).read_text())
        profile = dataclass_json.load(BuildProfile, data["profile"]) if data["profile"] else None
        return BuildArtifact(path.name, str(data["model_id"]), profile, path, data)
    except (OSError, ValueError, KeyError, TypeError):
        # <model>-<format>-<key>, of a version that wrote nothing more down
        return BuildArtifact(path.name, path.name.rsplit("-", 2)[0], None, path)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
