"""`ps` and `rm`: what has failed is shown until it is removed, and only what has ended can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.base import RequestError
from launcher.cli import main
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from tests.deployments.test_ledger import held
from tests.supervision import detached, fake_plan


def record(name: str, phase: str, *leftovers: str) -> Path:
    """The folder of a deployment whose last word was `phase`."""
    folder = state_root() / "deployments" / name
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/000001.log").write_text("the end\n")
    (folder / "plan.json").write_text(json.dumps({"ports": [], "plan": {"name": name}}))
    (folder / "state.json").write_text(json.dumps({"state": phase, "reason": "", "leftovers": leftovers}))
    return folder


def names(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main.run(["ps", *words]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_what_failed_is_shown_until_it_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    failed, stopped = record("broken", "FAILED"), record("old", "STOPPED")
    assert names(capsys) == ["broken"]
    assert names(capsys, "--all") == ["broken", "old"]
    assert main.run(["ps"]) == 0
    assert "`rmlaunch rm broken` removes it" in capsys.readouterr().err

    assert main.run(["rm", "broken"]) == 0

    assert capsys.readouterr().err == "removed: broken\n"
    assert names(capsys) == []
    assert (failed.exists(), stopped.exists()) == (False, True)
    assert not list(state_root().glob(".removed-*"))


@pytest.mark.parametrize(("flag", "left"), [("--failed", ["old"]), ("--all", [])])
def test_all_that_failed_or_all_that_ended(flag: str, left: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, phase in (("a", "FAILED"), ("b", "FAILED"), ("old", "STOPPED")):
        record(name, phase)

    assert main.run(["rm", flag]) == 0
    assert names(capsys, "--all") == left


def test_one_that_was_stopped_is_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    record("old", "STOPPED")

    assert main.run(["status", "old"]) == main.run(["logs", "old"]) == 0
    assert capsys.readouterr().out.endswith("the end\n")


@pytest.mark.parametrize("words", [["status", "brokn"], ["logs", "brokn"], ["stop", "brokn"], ["rm", "brokn"]])
def test_a_name_that_is_not_found_is_answered_with_what_is_listed(words: list[str]) -> None:
    record("broken", "FAILED")
    record("old", "STOPPED")

    with pytest.raises(
        RequestError, match=r"^deployment 'brokn' not found; did you mean 'broken'\? available: broken$"
    ):
        main.run(words)


def test_where_nothing_is_listed_that_is_said() -> None:
    record("old", "STOPPED")

    with pytest.raises(RequestError, match=r"^deployment 'x' not found; none runs and none has failed$"):
        main.run(["status", "x"])


def test_one_that_runs_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path))
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        with pytest.raises(RequestError, match=r"^fake is READY; `rmlaunch stop fake` ends it first$"):
            main.run(["rm", "fake"])
        assert main.run(["rm", "--all"]) == 0
        assert folder.exists()

        assert main.run(["stop", "fake"]) == main.run(["rm", "fake"]) == 0
        assert not folder.exists()


def test_one_that_has_left_something_is_not_removed() -> None:
    folder = record("odd", "FAILED", "pid 7 (server)")
    (folder / "run").mkdir()

    with pytest.raises(RequestError, match=r"^odd has left pid 7 \(server\); `rmlaunch stop odd` ends it first$"):
        main.run(["rm", "--failed"])
    assert folder.exists()


def test_one_whose_name_is_taken_again_is_not_removed() -> None:
    record("a", "FAILED")
    deployments = Deployments(state_root())
    with held(state_root() / "deployments/a/lock"), pytest.raises(RequestError, match="`rmlaunch stop a` ends it"):
        deployments.remove("a")
    with held(state_root() / "deployments/a/replacing.lock"), pytest.raises(RequestError, match="a is being replaced"):
        deployments.remove("a")


def test_a_wrong_name_keeps_nobody_from_being_removed(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [record(name, "FAILED") for name in ("a", "b")]

    assert main.run(["rm", "x", "a", "y", "b"]) == 2
    assert capsys.readouterr().err.count("error: deployment ") == 2
    assert [folder.exists() for folder in folders] == [False, False]


@pytest.mark.parametrize("words", [[], ["a", "--all"], ["--failed", "--all"]])
def test_it_is_told_what_to_remove(words: list[str]) -> None:
    with pytest.raises(RequestError, match="name what to remove: rmlaunch rm NAME …, or --failed, or --all"):
        main.run(["rm", *words])


def test_what_a_killed_removal_has_left_goes_with_the_next() -> None:
    record("a", "FAILED")
    (state_root() / ".removed-x/record").mkdir(parents=True)

    with Ledger(state_root()).exclusive():
        Ledger(state_root()).remove("a")
    assert not list(state_root().glob(".removed-*"))
