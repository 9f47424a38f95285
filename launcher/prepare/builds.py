"""Run build steps: each makes one artifact, whole or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import FILES, OUTPUT, BuildStep, PrepareError
from launcher import commands
from launcher.atomic import made_once
from launcher.inheritance import inherited
from launcher.prepare import artifacts
from launcher.prepare.environments import ensure
from launcher.progress import Progress

if TYPE_CHECKING:
    pass


def run(step: BuildStep, progress: Progress, inherit: Sequence[str] = ()) -> None:
    """Make the artifact of `step` unless it exists. Raises `PrepareError` with the command's last lines.

    The command inherits an engine's variables, and those that `inherit` names.
    """
    output = Path(step.output)
    if output.exists():
        return
    ensure(step.environment, progress)
    log = output.with_name(f"{output.name}.log")
    with (
        progress.stage("build", step.name),
        made_once(output, lambda: progress.detail("waiting for another launch that builds the same")) as folder,
    ):
        if folder is None:
            return
        began = time.time()
        # Beside the artifact, by a name that the next builder and `artifact prune` remove if we are killed.
        beside = f".{output.name}.partial-tmp-"
        with tempfile.TemporaryDirectory(prefix=beside, dir=output.parent) as temporary, log.open("w") as stream:
            given = Path(temporary, "files")
            _write_files(step, given)
            placed = partial(_placed, output=str(folder), files=str(given))
            env = {
                **inherited(os.environ, inherit),
                "PATH": commands.search_path(step.environment),
                "TMPDIR": temporary,
            }
            env |= {key: placed(value) for key, value in step.env.items()}
            try:
                code, tail = commands.run([placed(word) for word in step.argv], env, progress.detail, log=stream)
            except (FileNotFoundError, PermissionError) as exc:
                raise PrepareError(f"build step {step.name}: {step.argv[0]!r} cannot be run: {exc.strerror}") from exc
        _check(step, code, tail, folder, log)
        artifacts.describe(step, folder, began)


def _check(step: BuildStep, code: int, tail: Sequence[str], folder: Path, log: Path) -> None:
    last = "".join(f"\n  {line}" for line in tail)
    if code:
        meaning = step.meanings.get(str(code))
        ended = f"exited {code}" if code > 0 else f"was ended by signal {-code}"
        raise PrepareError(f"build step {step.name} {ended}{f': {meaning}' if meaning else ''} (log: {log}):{last}")
    if step.made and not (folder / step.made).is_file():
        raise PrepareError(f"build step {step.name} exited 0, but made no {step.made} (log: {log}):{last}")


def _placed(text: str, *, output: str, files: str) -> str:
    return text.replace(OUTPUT, output).replace(FILES, files)


def _write_files(step: BuildStep, folder: Path) -> None:
    for name, text in step.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
