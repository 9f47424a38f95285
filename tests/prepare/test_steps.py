"""What is made before a program starts, in which order, and what is not made again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from engines.base import OUTPUT, BuildStep, Environment, LaunchPlan, Model, PrepareError
from launcher.prepare.steps import make_run_folder, prepare_model
from launcher.progress import Progress
from tests.supervision import fake_plan

QUIET = Progress(quiet=True)


def step(tmp_path: Path, name: str) -> BuildStep:
    """A step that notes its name and makes a file."""
    script = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); open(sys.argv[3] + '/made', 'w').close()"
    return BuildStep(
        name=name,
        argv=(sys.executable, "-c", script, str(tmp_path / "done"), name, OUTPUT),
        output=str(tmp_path / "artifacts" / name),
        environment=Environment("current", sys.prefix, "3.11", managed=False),
    )


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    """Two conversions, of which the second makes the model, and an archive of it."""
    source = tmp_path / "source"
    source.mkdir()
    steps = tuple(step(tmp_path, name) for name in ("a", "b", "c"))
    model = Model("m", f"file:{source}", "rbln", steps[1].output)
    return dataclasses.replace(fake_plan(tmp_path), model=model, builds=steps)


def done(tmp_path: Path) -> str:
    file = tmp_path / "done"
    return file.read_text() if file.exists() else ""


def test_everything_is_made_once_and_in_order(tmp_path: Path, plan: LaunchPlan) -> None:
    prepare_model(plan, QUIET)
    prepare_model(plan, QUIET)

    assert done(tmp_path) == "abc"


def test_the_way_to_a_model_that_is_there_is_not_gone_again(tmp_path: Path, plan: LaunchPlan) -> None:
    Path(plan.model.path).mkdir(parents=True)
    (tmp_path / "source").rmdir()

    prepare_model(plan, QUIET)

    assert done(tmp_path) == "c"


def test_a_source_that_is_gone_is_an_error(tmp_path: Path, plan: LaunchPlan) -> None:
    (tmp_path / "source").rmdir()

    with pytest.raises(PrepareError, match="check the path"):
        prepare_model(plan, QUIET)

    assert done(tmp_path) == ""


def test_the_run_folder_is_made_anew_and_nothing_is_written_through_what_was_left_in_it(
    tmp_path: Path, plan: LaunchPlan
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    plan = dataclasses.replace(plan, files={"models/config": "new", "start.py": "new"}, links={"backend": "/usr"})
    root = Path(plan.run_dir)
    root.mkdir(parents=True)
    for name in ("models", "start.py", "backend"):
        (root / name).symlink_to(victim)

    make_run_folder(plan)

    assert list(victim.iterdir()) == []
    assert sorted(entry.name for entry in root.iterdir()) == ["backend", "models", "start.py"]
    assert (root / "models/config").read_text() == "new"


def test_a_run_folder_that_cannot_be_removed_is_told(tmp_path: Path, plan: LaunchPlan) -> None:
    Path(plan.run_dir).parent.mkdir(parents=True)
    Path(plan.run_dir).symlink_to(tmp_path)

    with pytest.raises(PrepareError, match=r"run is left from an earlier start and cannot be removed; remove it$"):
        make_run_folder(plan)
