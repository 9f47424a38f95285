"""The environments that launcher/prepare/environments.py has made: listed with their users, and pruned."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.prepare.stores import Pruned, half_made, removed, users
from launcher.procfs import command, name

_SITE = "lib/python3*/site-packages"


@dataclass(frozen=True, slots=True)
class Made:
    """A whole environment of ours."""

    id: str  #: name of its folder: `name`, and a hash of its packages
    path: Path
    python: str
    size_bytes: int  #: bytes of its packages' files; equal ones share their disk space through uv's cache

    @property
    def name(self) -> str:
        """The engine and its device kind, or the conversion: `llamacpp-cpu`, `convert`."""
        return self.id.rpartition("-")[0] or self.id

    @property
    def last_used(self) -> float:
        """The Unix time of the last launch that found it whole, or of when it was made."""
        return self.path.stat().st_mtime


def found(store: Path) -> Iterator[Made]:
    """Yield every whole environment, by name."""
    for path in sorted(store.glob("[!.]*")):
        settings = _settings(path / "pyvenv.cfg")
        if settings is not None:
            python = settings.get("version_info") or settings.get("version") or ""
            yield Made(path.name, path, python, _size(path))


def used_by(store: Path, plans: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Return the users of each environment, by its id: deployments, and other processes as `pid 7 (python)`.

    `plans` has the text of plan.json of each deployment that may run. Builds, and other users' deployments on the same
    cache, show by their processes alone.
    """
    return {**users(store, dict(_processes())), **users(store, plans)}


def prune(store: Path, used: Collection[str], *, unused: bool, older_than_s: float = 0.0) -> Iterator[Pruned]:
    """Remove unfinished environments; with `unused`, also those that are not in `used`.

    The caller holds the ledger, so that nobody begins to use one meanwhile. Environments being made are left alone. The
    lock file with the digests stays, so that one is made again from exactly the same files.
    """
    if not store.is_dir():
        return
    for key, path in half_made(store):
        yield from removed(store, key, [path], "half-made")
    limit = time.time() - older_than_s
    for one in found(store) if unused else ():
        if one.id not in used and one.last_used <= limit:
            yield from removed(store, one.id, [one.path], "unused")


def _processes() -> Iterator[tuple[str, str]]:
    """Yield each process that we may look at, with its argv and the files that it has mapped."""
    for entry in os.listdir("/proc"):  # noqa: PTH208  (names alone)
        if entry.isdigit() and int(entry) != os.getpid():
            pid = int(entry)
            try:
                maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            except OSError:
                maps = ""
            yield f"pid {pid} ({name(pid)})", command(pid).decode(errors="replace") + maps


def _settings(file: Path) -> Mapping[str, str] | None:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def _size(path: Path) -> int:
    """Add up the sizes in the packages' own lists: looking at each file would take seconds."""
    total = 0
    for record in path.glob(f"{_SITE}/*.dist-info/RECORD"):
        try:
            lines = record.read_bytes().splitlines()
        except OSError:
            continue
        total += sum(int(size) for line in lines if (size := line.rpartition(b",")[2]).isdigit())
    return total
