"""Everything that a plan needs before its program can start: packages, weights, artifacts, files."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.base import LaunchPlan, PrepareError
from launcher import builds, environments, models
from launcher.paths import cache_root
from launcher.progress import Progress


def prepare(plan: LaunchPlan, progress: Progress) -> None:
    """Make what is missing; what is there already is used as it is. Raises `PrepareError`."""
    inside = plan.argv[0].startswith(f"{plan.environment.path}/")
    if not inside:
        _check_program(plan)  # before hours of downloads and builds
    environments.ensure(plan.environment, progress)
    if not Path(plan.model.path).exists():
        models.fetch(models.parse(plan.model.source), cache_root(), progress)
        for step in plan.builds:
            builds.run(step, progress)
    render_files(plan)
    if inside:
        _check_program(plan)


def render_files(plan: LaunchPlan) -> None:
    """Write the plan's files and links below its `run_dir`."""
    root = Path(plan.run_dir)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in plan.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in plan.links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)


def _check_program(plan: LaunchPlan) -> None:
    program = plan.argv[0]
    if shutil.which(program, path=plan.env.get("PATH")) is None:
        raise PrepareError(
            f"{plan.name}: there is no program {program!r}; install it, name yours with engine.program=…, or choose "
            "another engine.environment"
        )
