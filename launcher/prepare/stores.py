"""A store of artifacts or environments: a folder with one folder for each thing.

<store>/<name>/                 whole
<store>/.<name>.lock            held while it is being made or removed; stays: somebody may be waiting for it
<store>/.<name>.partial-…/      being made, being removed, or left by a killed process
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher import trees
from launcher.atomic import open_lock

_PARTIAL = re.compile(r"\.(?P<id>.+)\.partial-[^.]+")


@dataclass(frozen=True, slots=True)
class Pruned:
    """A thing that was removed, and why."""

    path: Path
    bytes: int  #: disk space that is free now
    why: str


def users(store: Path, texts: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Return the users of each thing in `store`, by its name.

    `texts` has for each user a text that may name things, such as a deployment's plan.json. The beginning of a path is
    not compared: another user may have written it through a link, or as JSON does.
    """
    held: dict[str, list[str]] = {}
    for user, text in texts.items():
        for name in sorted(set(re.findall(rf"/{re.escape(store.name)}/([A-Za-z0-9._-]+)", text))):
            held.setdefault(name, []).append(user)
    return {name: tuple(found) for name, found in held.items()}


def half_made(store: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of everything that is not whole, things being made included."""
    for path in sorted(store.iterdir()):
        if match := _PARTIAL.fullmatch(path.name):
            yield match["id"], path


def removed(store: Path, name: str, paths: Sequence[Path], why: str) -> Iterator[Pruned]:
    """Remove `paths` of the thing `name` and yield what went; nothing if somebody makes or removes it right now."""
    with _lock(store / f".{name}.lock") as ours:
        for path in paths if ours else ():
            if path.exists():
                size = own_bytes(path)
                _remove(path)
                yield Pruned(path, size, why)


def own_bytes(path: Path) -> int:
    """Return the bytes that removing `path` frees: files with another name elsewhere, as in uv's cache, count as 0."""
    files = path.rglob("*") if path.is_dir() else [path]
    found = (file.lstat() for file in files if not file.is_dir())
    return sum(one.st_size for one in found if one.st_nlink == 1)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.name.startswith("."):  # under its name it is whole or not there
        path = path.rename(path.with_name(f".{path.name}.partial-pruned-{os.getpid()}"))
    if path.is_dir():
        trees.remove(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    with open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
