"""Deployments of other releases: what the release before has started, and what a newer one may leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.deployments.connection import NoAnswerError
from launcher.deployments.ledger import Ledger, NameTakenError
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from launcher.serving.attached import Attached
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import PROTOCOL
from tests.deployments.test_records import kill, pids
from tests.deployments.test_strange_records import other_version
from tests.releases import NAME, NEWER, Before, Orphan, changed, orphaned, serves
from tests.supervision import detached, fake_plan, free_port, is_alive, wait_for

TOLD = f"fake was started by a newer rmlaunch (protocol {NEWER}; this one speaks {PROTOCOL}): "
REMEDY = "; stop it with that version or `rmlaunch stop fake --now`"

Changes = dict[str, Any]


@pytest.fixture
def state() -> Path:
    return state_root()


def numbered(**changes: Any) -> Changes:
    """Changes to a record of a newer release."""
    return {"protocol": NEWER, **changes}


def prove_it_is_adopted(state: Path, orphan: Orphan) -> None:
    found = Deployments(state).find(NAME)
    assert (found.live, found.news.phase, found.news.pid, found.news.reason) == (True, Phase.READY, orphan.pid, "")
    assert infer(state) == "yes"
    assert main.run(["stop", NAME]) == 0
    assert not is_alive(orphan.pid)


@contextlib.contextmanager
def supervisor_of_before(state: Path, stops: int = 1) -> Iterator[tuple[Path, Before]]:
    """A supervisor that says what the release before said, and ends at stop number `stops`."""
    before = Before(state, free_port(), supervisor=os.getpid())
    ready, *_, stopped = before.text("news.jsonl").splitlines(keepends=True)
    answers = {"status": ready, "follow": ready, "target": before.text("target.json"),
               "metrics": before.text("metrics.json"), "kill": before.text("refusal.json")}  # fmt: skip
    with other_version(state, answers, json.loads(stopped), name=NAME, stops=stops) as folder:
        (folder / "plan.json").write_text(before.text("plan.json"))
        (folder / "state.json").write_text(before.text("state.json"))
        yield folder, before


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().split()


def test_the_words_of_the_supervisor_of_the_release_before_are_understood(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with supervisor_of_before(state) as (folder, before):
        assert main.run(["status", NAME, "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["state"], status["reason"], status["pid"]) == ("READY", "", 1)
        assert status["endpoint"] == f"http://127.0.0.1:{before.port}"
        assert main.run(["ps"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == [NAME, "READY"]
        assert main.run(["metrics", NAME]) == 0
        assert 'rmlaunch_starts_total{deployment="fake"} 1' in capsys.readouterr().out
        with subprocess.Popen(before.command()) as server:
            try:
                wait_for(lambda: serves(before.port))
                assert infer(state) == "yes"
            finally:
                server.kill()
        assert set(asked(folder)) == {"status", "metrics", "target"}


@pytest.mark.parametrize("words", [["stop", NAME, "--now"], ["kill", NAME]])
def test_to_kill_the_release_before_is_asked_to_stop_twice(state: Path, words: list[str]) -> None:
    with supervisor_of_before(state, stops=2) as (folder, _):
        assert main.run(words) == 0
        assert [op for op in asked(folder) if op not in ("status", "follow")] == ["stop", "stop"]
    assert Deployments(state).find(NAME).news.phase is Phase.STOPPED


def test_a_stop_is_asked_for_once(state: Path) -> None:
    with supervisor_of_before(state) as (folder, _):
        assert main.run(["stop", NAME]) == 0
        assert [op for op in asked(folder) if op not in ("status", "follow")] == ["stop"]


def infer(state: Path) -> object:
    client = Attached(Deployments(state).find(NAME))
    try:
        return client.infer([{"role": "user", "content": "hi"}])
    finally:
        client.close()


def test_what_the_release_before_left_serving_is_adopted(state: Path) -> None:
    with orphaned(state) as orphan:
        prove_it_is_adopted(state, orphan)


@pytest.mark.parametrize(
    ("orders", "news", "record"),
    [
        (numbered(), numbered(), numbered()),
        (numbered(mood="good", plan={"mood": "good"}, policy={"mood": 1}), numbered(), numbered()),
        (numbered(), numbered(mood="good", handle=numbered(mood="good")), numbered()),
        (numbered(), numbered(), numbered(mood="good", plan={"mood": "good"})),
        (numbered(log_bytes=..., options=..., memory_before=...), numbered(tail=..., since=...), numbered(ports=...)),
        (numbered(), numbered(handle={"version": 9, "keeper": ...}), numbered(plan=...)),
        (numbered(), numbered(state="HIBERNATING"), numbered()),
        (numbered(runtime="moved:Process", device="moved:Gpu"), numbered(), numbered()),
    ],
    ids=["number", "orders", "news", "record", "less", "handle", "state", "paths"],
)
def test_what_is_understood_of_a_newer_release_is_adopted(
    state: Path, orders: Changes, news: Changes, record: Changes
) -> None:
    with orphaned(state, orders, news, record) as orphan:
        prove_it_is_adopted(state, orphan)


@contextlib.contextmanager
def told_alone(state: Path, orphan: Orphan, why: str, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """It is listed with one sentence and serves on, whatever is done to others; in the end `stop --now` ends it."""
    with detached(fake_plan(state, name="sound"), state):
        sound = pids(state, "sound")
        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        rows = [line.split()[:2] for line in told.out.splitlines()[1:]]
        assert rows == [["fake", "UNKNOWN"], ["sound", "READY"]]
        assert told.err == f"{TOLD}{why}{REMEDY}\n"
        with Ledger(state).exclusive():
            Ledger(state).claim("other", (), {}).release()
            with pytest.raises(NameTakenError, match=r"(of|by) a newer rmlaunch"):
                Ledger(state).claim(NAME, (), {})
        assert is_alive(orphan.pid)
        yield
        assert main.run(["stop", NAME, "--now"]) == 0
        assert not is_alive(orphan.pid)
        assert pids(state, "sound") == sound
    assert Deployments(state).find(NAME).news.phase is Phase.STOPPED


@pytest.mark.parametrize(
    ("news", "record", "why"),
    [
        (numbered(handle="pod a"), numbered(), "the handle of its program is not understood: handle: 'pod a' is no"),
        (numbered(handle=...), numbered(), "the handle of its program is not understood: handle is missing"),
        (numbered(handle={"pid": ...}), numbered(), "the handle of its program is not understood: pid is missing"),
        (numbered(handle=None), numbered(), "the orders that it keeps for its next supervisor are not found"),
        (numbered(), numbered(plan={"runtime": "ray"}), "runtime 'ray' not found; available: docker, none, process"),
    ],
    ids=["handle", "no handle", "no pid", "null", "runtime"],
)
def test_a_record_of_a_newer_release_that_is_not_understood_costs_one_sentence(
    state: Path, news: Changes, record: Changes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if why.endswith("is no"):
        why += " object"
    with orphaned(state, numbered(), news, record) as orphan, told_alone(state, orphan, why, capsys):
        pass


@pytest.mark.parametrize(
    ("orders", "why"),
    [
        (numbered(policy="strict"), "its orders are not understood: policy: 'strict' is no object"),
        (numbered(plan=...), "its orders are not understood: plan is missing"),
        (numbered(stop_grace_s="5 s"), "its orders are not understood: stop_grace_s: '5 s' is no float"),
        (numbered(plan={"name": "fake-a"}), "its orders have name=fake-a, where its record has fake"),
        (numbered(plan={"runtime": "ray"}), "its orders have runtime=ray, where its record has process"),
    ],
)
def test_orders_of_a_newer_release_that_are_not_understood_cost_one_sentence(
    state: Path, orders: Changes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with orphaned(state, orders, numbered(), numbered()) as orphan, told_alone(state, orphan, why, capsys):
        pass


def test_orders_that_a_newer_release_keeps_elsewhere_cost_one_sentence(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "the orders that it keeps for its next supervisor are not found"
    with orphaned(state, None, numbered(), numbered(), keeps=False) as orphan, told_alone(state, orphan, why, capsys):
        pass


def test_a_state_of_a_newer_release_in_another_format_costs_one_sentence(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with orphaned(state, numbered(), numbered(), numbered()) as orphan:
        (orphan.folder / "state.json").write_bytes(b"\x82\xa5state")
        with told_alone(state, orphan, "its state.json is not understood: it is no JSON", capsys):
            pass


def test_a_supervisor_of_a_newer_release_is_listed_and_stopped_and_asked_where_it_is_understood(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Before(state, free_port(), supervisor=os.getpid())
    ready = json.dumps(changed(before.data("state.json"), numbered(mood="good"))) + "\n"
    refusal = json.dumps(numbered(error="op='metrics' went away")) + "\n"
    answers = {"status": ready, "follow": ready, "metrics": refusal, "restart": refusal,
               "target": json.dumps(changed(before.data("target.json"), numbered(plan=[1]))) + "\n"}  # fmt: skip
    with (
        other_version(state, answers, {"state": "STOPPED"}, name=NAME),
        detached(fake_plan(state, name="sound"), state),
    ):
        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        assert [line.split()[:2] for line in told.out.splitlines()[1:]] == [["fake", "READY"], ["sound", "READY"]]
        assert told.err == ""
        for words, why in [
            (["infer", NAME, "hi"], "its supervisor's answer to target is not understood: plan: [1] is no object"),
            (["metrics", NAME], "its supervisor refuses metrics: \"op='metrics' went away\""),
            (["restart", NAME], "its supervisor refuses what it was asked for: \"op='metrics' went away\""),
        ]:
            with pytest.raises(NoAnswerError) as caught:
                main.run(words)
            assert str(caught.value) == f"{TOLD}{why}{REMEDY}"
        assert main.run(["stop", NAME]) == 0
        assert main.run(["metrics", "sound"]) == 0


def test_a_supervisor_of_a_newer_release_in_a_state_that_is_not_known_is_stopped_all_the_same(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Before(state, free_port(), supervisor=os.getpid())
    asleep = json.dumps(changed(before.data("state.json"), numbered(state="HIBERNATING"))) + "\n"
    with other_version(state, {"status": asleep, "follow": asleep}, {"state": "STOPPED"}, name=NAME):
        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[1].split()[:2] == ["fake", "UNKNOWN"]
        assert told.err == (
            f"{TOLD}its supervisor's word is not understood: phase: 'HIBERNATING' is not known{REMEDY}\n"
        )
        assert main.run(["stop", NAME]) == 0


def test_what_a_newer_release_left_and_has_ended_is_said_to_have(state: Path) -> None:
    with orphaned(state, numbered(), numbered(), numbered()) as orphan:
        kill(orphan.pid)

        found = Deployments(state).find(NAME)

    assert (found.live, found.news.phase) == (False, Phase.FAILED)
    assert found.news.reason == "its supervisor was killed; its program has ended since, or was not to outlive it"


def test_orders_of_this_release_that_are_not_understood_end_nothing_either(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with orphaned(state, {"policy": "strict"}) as orphan:
        assert main.run(["ps"]) == 0
        assert capsys.readouterr().err == (
            "fake: it serves without a supervisor, and its orders are not understood: policy: 'strict' is no object; "
            "`rmlaunch stop fake` ends it\n"
        )
        assert is_alive(orphan.pid)
        assert main.run(["stop", NAME]) == 0
        assert not is_alive(orphan.pid)
