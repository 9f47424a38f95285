"""What is made before a program starts, in which order, and what is not made again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from engines.base import OUTPUT, BuildStep, Environment, LaunchPlan, Model, PrepareError
from launcher.prepare import prepare_model
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
