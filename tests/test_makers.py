"""Files in shared folders are told by who has made them: another program's never count."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.makers import Makers

MAKE = """
import os, pathlib, sys
for path in sys.argv[1:]:
    pathlib.Path(path + ".new").write_text("")
    os.rename(path + ".new", path)
print("made", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells root alone who makes a file")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def makers(shared: Path) -> Iterator[Makers]:
    with Makers((shared,)) as made:
        yield made


def make(
    makers: Makers, *paths: Path, deployment: Path | None = None, stands_in: Path | None = None, below: bool = False
) -> None:
    """Let a process make files and end: one of `deployment`, one that stands in a folder, or a child of the first."""
    env = {} if deployment is None else {"RMLAUNCH_DEPLOYMENT": str(deployment)}
    argv = [sys.executable, "-c", MAKE, *map(str, paths)]
    if below:  # as one that has written over its variables
        argv = ["/usr/bin/env", "sh", "-c", 'env -i "$@"; true', "sh", *argv]
    with subprocess.Popen(argv, env=env, cwd=stands_in, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        makers.left_by(paths[0])  # it has been asked whose it is
        process.communicate(timeout=10)


def test_what_a_deployments_process_has_made_is_its_own_and_nothing_else_is(
    makers: Makers, shared: Path, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "mine/run", tmp_path / "theirs/run"
    mine.mkdir(parents=True)
    make(makers, shared / "a", shared / "b", deployment=mine)
    make(makers, shared / "c", deployment=theirs)
    make(makers, shared / "d")
    make(makers, shared / "e", stands_in=mine)
    make(makers, shared / "f", deployment=mine, below=True)
    (shared / "g").mkdir()

    assert makers.left_by(mine) == [str(shared / name) for name in "abef"]
    assert makers.left_by(theirs) == [str(shared / "c")]


def test_what_is_gone_again_is_not_left(makers: Makers, shared: Path, tmp_path: Path) -> None:
    make(makers, shared / "a", shared / "b", deployment=tmp_path)
    (shared / "a").unlink()

    assert makers.left_by(tmp_path) == [str(shared / "b")]


def test_a_name_that_another_takes_later_is_the_others(makers: Makers, shared: Path, tmp_path: Path) -> None:
    make(makers, shared / "a", deployment=tmp_path / "mine")
    (shared / "a").unlink()
    make(makers, shared / "a", deployment=tmp_path / "theirs")

    assert makers.left_by(tmp_path / "mine") == []
    assert makers.left_by(tmp_path / "theirs") == [str(shared / "a")]
