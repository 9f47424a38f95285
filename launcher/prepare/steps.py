"""Prepare everything that a plan needs before its program can start: packages, weights, artifacts, files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.base import BuildStep, Container, Environment, LaunchPlan, PrepareError
from launcher import trees
from launcher.config import model_source
from launcher.paths import cache_root
from launcher.prepare import environments
from launcher.progress import Progress


def prepare(plan: LaunchPlan, progress: Progress) -> None:
    """Make everything that is missing; present things are used as they are. Raises `PrepareError`."""
    here = bool(plan.argv) and plan.container is None
    inside = here and plan.argv[0].startswith(f"{plan.environment.path}/")
    if here and not inside:
        check_program(plan)  # before hours of downloads and builds
    if plan.container:
        _prepare_container(plan.container, progress)
    elif here:
        environments.ensure(plan.environment, progress)
    prepare_model(plan, progress)
    make_run_folder(plan)
    if inside:
        check_program(plan)


def _prepare_container(container: Container, progress: Progress) -> None:
    from launcher.prepare import images  # not at the top: a launch without a container would wait for it

    images.ensure(container, progress)
    Path(container.cache).mkdir(mode=0o700, parents=True, exist_ok=True)


def environments_of(plan: LaunchPlan) -> list[Environment]:
    """Return the environments of the program and, where the model is not here yet, of the build steps that make it."""
    program = [plan.environment] if plan.argv and plan.container is None else []
    return program if Path(plan.model.path).exists() else [*program, *(step.environment for step in plan.builds)]


def prepare_model(plan: LaunchPlan, progress: Progress) -> None:
    """Fetch the model and run the build steps whose results are missing. Raises `PrepareError`."""
    ends = [number for number, step in enumerate(plan.builds, 1) if step.model_path == plan.model.path]
    conversions, others = plan.builds[: max(ends, default=0)], plan.builds[max(ends, default=0) :]
    if not Path(plan.model.path).exists():
        from launcher.prepare import models  # most launches find the model where it is to be

        models.fetch(model_source.parse(plan.model.source), cache_root(), progress)
        _build(conversions, plan, progress)
    _build(others, plan, progress)


def _build(steps: Sequence[BuildStep], plan: LaunchPlan, progress: Progress) -> None:
    if steps:
        from launcher.prepare import builds  # not at the top either

        for step in steps:
            builds.run(step, progress, plan.inherit)


def make_run_folder(plan: LaunchPlan) -> None:
    """Make the run folder with the plan's files, anew: a container of an earlier start may have left links in it.

    Raises `PrepareError` if the earlier one cannot be removed.
    """
    root = Path(plan.run_dir)
    trees.remove(root)
    try:
        root.mkdir(mode=0o700, parents=True)
    except FileExistsError as exc:
        raise PrepareError(
            f"{plan.name}: {root} is left from an earlier start and cannot be removed; remove it"
        ) from exc
    render_files(plan.files, plan.links, root)
    for name in plan.writes:
        (root / name).mkdir()


def render_files(files: Mapping[str, str], links: Mapping[str, str], root: Path) -> None:
    """Write `files` (path below `root` → text) and `links` (→ target)."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)


def check_program(plan: LaunchPlan) -> None:
    """Raise `PrepareError` if the program of `plan` is not there."""
    if not plan.argv:  # somebody else runs the server
        return
    program = plan.argv[0]
    if shutil.which(program, path=plan.env.get("PATH")) is None:
        raise PrepareError(
            f"{plan.name}: there is no program {program!r}; install it, name yours with engine.program=…, or choose "
            "another engine.environment"
        )
