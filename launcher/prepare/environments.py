"""Make environments with uv: whole or not at all, from exactly the files that their lock names."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.base import Environment, PrepareError
from launcher.atomic import made_once
from launcher.commands import run
from launcher.inheritance import PACKAGES, inherited
from launcher.masking import mask_url
from launcher.progress import Progress

#: pip's settings that uv has under another name: a machine that is set up for pip works without being asked again
_PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
}


def ensure(environment: Environment, progress: Progress) -> None:
    """Make `environment` unless it exists. Raises `PrepareError` with the packages and indexes it wanted."""
    target = Path(environment.path)
    if not environment.managed:
        return
    if target.exists():
        with contextlib.suppress(OSError):  # another user's, or on a disk that is read-only
            os.utime(target)  # when it was used last, for `env list` and `env prune --older-than`
        return
    packages = f"{len(environment.requirements)} pinned requirements, Python {environment.python}"
    with (
        progress.stage("environment", f"making {environment.name} ({packages})"),
        made_once(target, lambda: progress.detail("waiting for another launch that makes the same")) as folder,
    ):
        if folder is not None:
            _fill(folder, environment, progress)


def uv(arguments: Sequence[str], what: str, progress: Progress, stdin: str = "", indexes: Sequence[str] = ()) -> None:
    """Run uv and show its output. Raises `PrepareError` that begins with `what` and ends with uv's last lines.

    `indexes` go into its environment: they may hold passwords, and everybody may read a command line.
    """
    from uv import find_uv_bin

    def show(line: str) -> None:
        if line.startswith(("Resolved", "Prepared", "Installed", "Downloading", "Building")):
            progress.detail(line)

    code, tail = run([find_uv_bin(), *arguments], _uv_env(indexes), show, stdin)
    if code:
        raise PrepareError(f"{what}: uv exited {code}:\n  " + mask_url("\n  ".join(tail)))


def try_indexes(environment: Environment, limit_s: float) -> str:
    """Ask the indexes for the pinned requirements, for at most `limit_s` seconds; nothing is installed.

    Return uv's last words, or that it did not end; empty if all are there.
    """
    from uv import find_uv_bin

    from launcher.devices.host import ask

    words = ["pip", "install", "--dry-run", "--no-deps", "--python", _interpreter(environment.python)]
    said = ask([find_uv_bin(), *words, *environment.requirements], limit_s, _uv_env(environment.indexes))
    last = [line for line in said.out.decode(errors="replace").splitlines() if line.strip()]
    return said.failed or (mask_url(last[-1].strip()) if said.code and last else "")


def _fill(folder: Path, environment: Environment, progress: Progress) -> None:
    wanted = f"could not make environment {environment.name} ({_wanted(environment)})"
    # Relocatable, because the folder is renamed when it is whole.
    uv(["venv", "--quiet", "--relocatable", "--clear", "--python", _interpreter(environment.python), str(folder)],
       wanted, progress)  # fmt: skip
    python = ["--python", str(folder / "bin/python")]
    overrides = []
    if environment.overrides:
        file = folder / "overrides.txt"
        file.write_text("\n".join(environment.overrides) + "\n")
        overrides = ["--overrides", str(file)]
    install(
        environment.requirements,
        Path(environment.path),
        folder,
        wanted,
        progress,
        choosing=[*python, *overrides],
        installing=python,
        indexes=environment.indexes,
    )


def install(
    requirements: Sequence[str],
    target: Path,
    folder: Path,
    wanted: str,
    progress: Progress,
    *,
    choosing: Sequence[str],
    installing: Sequence[str],
    indexes: Sequence[str] = (),
) -> None:
    """Install `requirements` into `folder`, which becomes `target`: exactly the files that its lock names.

    The first time, the lock is written beside `target`: each chosen package, with the digests of its files. It outlives
    `target`, so that a second installation is the same or is refused. `choosing` and `installing` are uv's options for
    the two. Raises `PrepareError` that begins with `wanted`.
    """
    lock, chosen = lock_of(target), folder / "lock.txt"
    if lock.exists():
        shutil.copyfile(lock, chosen)
        wanted += (
            f" as {lock} has it from the first time; where its index has other files now, remove that to choose anew"
        )
    else:
        words = ["pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "-o", str(chosen)]
        uv([*words, *choosing, "-"], wanted, progress, stdin="\n".join(requirements) + "\n", indexes=indexes)
    uv(["pip", "install", "--no-deps", *installing, "-r", str(chosen)], wanted, progress, indexes=indexes)
    if mask_url(text := chosen.read_text()) == text:
        chosen.replace(lock)
    else:
        chosen.unlink()  # a password in a requirement stays on no disk


def lock_of(target: Path) -> Path:
    """Return the file with the digests of the packages that were installed in `target`."""
    return target.with_name(f"{target.name}.lock.txt")


def _wanted(environment: Environment) -> str:
    packages, indexes = ", ".join(environment.requirements), ", ".join(environment.indexes)
    return mask_url(f"{packages} from the default package index{' and ' + indexes if indexes else ''}")


def _interpreter(version: str) -> str:
    """Return our own interpreter if its version fits, so that nothing is searched for or downloaded."""
    base = Path(sys.base_prefix) / "bin" / f"python{version}"
    return str(base) if base.exists() else version


def _uv_env(indexes: Sequence[str]) -> Mapping[str, str]:
    env = inherited(os.environ, PACKAGES)  # a package that comes as source runs code of its own
    for pip, name in _PIP_TO_UV.items():
        if pip in env and name not in env:
            separator = "," if name == "UV_FIND_LINKS" else " "
            env[name] = separator.join(env[pip].split())
    if indexes:
        env["UV_INDEX"] = " ".join([*indexes, env.get("UV_INDEX", "")]).strip()
    return env
