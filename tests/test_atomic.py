"""What is there is whole, whoever is killed when; real processes race and die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.atomic import made_once, remove_partials, write_text
from tests.supervision import is_alive, wait_for

#: make argv[1], say so, wait for a line on stdin, and finish
MAKER = """\
import sys
from pathlib import Path
from launcher.atomic import made_once

with made_once(Path(sys.argv[1]), lambda: print("waiting", flush=True)) as folder:
    if folder is None:
        print("there", flush=True)
    else:
        (folder / "maker").write_text(sys.argv[2])
        print("making", flush=True)
        sys.stdin.readline()
        (folder / "whole").touch()
"""


class Maker:
    def __init__(self, target: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(target), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def files_in(target: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in target.iterdir()}


def test_two_processes_make_one_target_once(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with Maker(target, "first") as first:
        assert first.says() == "making"
        with Maker(target, "second") as second:
            assert second.says() == "waiting"
            assert not target.exists()
            first.go_on()
            assert second.says() == "there"
            assert (first.process.wait(10), second.process.wait(10)) == (0, 0)

    assert files_in(target) == {"maker": "first", "whole": ""}


def test_a_killed_maker_leaves_what_the_next_one_replaces(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with Maker(target, "first") as first:
        assert first.says() == "making"
        first.kill()
    assert not target.exists()
    (stale,) = tmp_path.glob(".target.partial-*")
    assert files_in(stale) == {"maker": "first"}

    with made_once(target) as folder:
        assert folder is not None
        assert folder != stale  # a program of the killed maker may still be writing there
        assert list(folder.iterdir()) == []
        (folder / "maker").write_text("second")

    assert files_in(target) == {"maker": "second"}
    assert list(tmp_path.glob(".target.partial-*")) == []


def test_who_waits_takes_over_when_the_maker_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with Maker(target, "first") as first:
        assert first.says() == "making"
        with Maker(target, "second") as second:
            assert second.says() == "waiting"
            first.kill()
            assert second.says() == "making"
            second.go_on()
            assert second.process.wait(10) == 0

    assert files_in(target) == {"maker": "second", "whole": ""}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_the_next_one_starts_over(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "target"

    def fail() -> None:
        with made_once(target) as folder:
            assert folder is not None
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        fail()

    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == []
    with made_once(target) as folder:
        assert folder is not None
    assert files_in(target) == {}


def test_what_a_killed_maker_has_left_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    stale = tmp_path / ".target.partial-1"
    stale.mkdir()
    script = "import os\nfor _ in range(5000): os.mkdir('deep'); os.chdir('deep')"
    subprocess.run([sys.executable, "-c", script], cwd=stale, check=True)

    try:
        with made_once(tmp_path / "target"):
            pass
        assert not stale.exists()
    finally:
        subprocess.run(["/bin/rm", "-rf", str(stale)], check=True)  # else it would stay in pytest's way


def test_a_target_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine").touch()

    with made_once(tmp_path / "target") as folder:
        assert folder is None

    assert files_in(tmp_path / "target") == {"mine": ""}
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]


def test_a_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")

        assert reader.read() == "old"
    assert files_in(tmp_path) == {"state.json": "new"}


#: write argv[1] again and again
WRITER = """\
import sys
from pathlib import Path
from launcher.atomic import write_text

while True:
    write_text(Path(sys.argv[1]), '{"text": "' + "x" * 1_000_000 + '"}')
    print(flush=True)
"""


def partials(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_what_a_killed_writer_has_left_is_removed_and_nothing_of_one_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as writer:
        try:
            wait_for(lambda: bool(partials(tmp_path)))
            writer.send_signal(signal.SIGSTOP)
            while not partials(tmp_path):  # it was between two of them
                writer.send_signal(signal.SIGCONT)
                writer.send_signal(signal.SIGSTOP)
            ours = tmp_path / f".plan.json.{os.getpid()}"
            gone = tmp_path / f".plan.json.{os.getpid()}-1"  # of a process that had our number once
            unlike = tmp_path / ".lock"
            for file in (ours, gone, unlike):
                file.touch()
            (left,) = {*partials(tmp_path)} - {ours.name, gone.name, unlike.name}

            remove_partials(tmp_path)
            assert {*partials(tmp_path)} == {left, ours.name, unlike.name}

            writer.kill()
            wait_for(lambda: not is_alive(writer.pid))  # nobody has waited for it yet
            remove_partials(tmp_path)
        finally:
            writer.kill()
    assert {*partials(tmp_path)} == {ours.name, unlike.name}


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()

    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "state.json", "new")

    assert partials(tmp_path) == []
