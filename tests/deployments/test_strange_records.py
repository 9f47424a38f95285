"""Records and supervisors that another version of us, or anybody at all, has made: each is one sentence about one
deployment, which can be listed and stopped, and no other is touched."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.base import DeploymentError, RmLaunchError
from launcher import plan_json, registry
from launcher.bounded_json import LIMIT_BYTES
from launcher.cli import main
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from launcher.runtimes.base import Handle
from launcher.runtimes.process import ProcessRuntime
from launcher.supervise.lifecycle import Phase
from tests.deployments.test_records import kill, pids
from tests.supervision import detached, fake_plan, is_alive, wait_for

Harm = Callable[[Path], None]

Said = dict[str, Any]
_SAID: Said = {
    "state": "READY",
    "reason": "",
    "starts": 1,
    "pid": 1,
    "handle": None,
    "leftovers": [],
    "tail": [],
    "log": "",
}


def text(content: bytes) -> Harm:
    def harm(file: Path) -> None:
        file.write_bytes(content)

    return harm


def changed(**values: object) -> Harm:
    def harm(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return harm


def without(key: str) -> Harm:
    def harm(file: Path) -> None:
        data = json.loads(file.read_text())
        del data[key]
        file.write_text(json.dumps(data))

    return harm


def gone(file: Path) -> None:
    file.unlink()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def huge(file: Path) -> None:
    os.truncate(file, 100 << 20)


ANY = {
    "empty": text(b""),
    "binary": text(b"\xff\xfe\x00\n"),
    "list": text(b"[]"),
    "deep": text(b"[" * 200_000),
    "number": text(b'{"ports": 1e999, "since": 1e999, "plan": 7, "handle": 7, "state": 7}'),
    "gone": gone,
    "fifo": fifo,
    "link": link,
    "endless": endless,
    "folder": folder,
    "huge": huge,
}
STATE = ANY | {
    "a key more": changed(mood="good"),
    "a key less": without("tail"),
    "another type": changed(timings=[1], since="noon", leftovers="none"),
    "a phase": changed(state="HIBERNATING"),
    "no phase": without("state"),
    "a handle": changed(handle="pid 7"),
}
PLAN = ANY | {
    "a key more": changed(mood="good"),
    "no plan": without("plan"),
    "no ports": without("ports"),
    "a list": changed(plan=[1]),
    "other parts": changed(
        plan={"engine": 1, "device": [], "model": "m", "endpoints": None, "probes": 3, "runtime": []}
    ),
}


@pytest.fixture
def state() -> Path:
    return state_root()


def harmed(file: str, harms: dict[str, Harm]) -> list[Any]:
    return [pytest.param(file, harm, id=f"{file}: {name}") for name, harm in harms.items()]


def listed(table: str) -> list[list[str]]:
    """Return name and state of each row of `ps`; one that has missed a probe on a busy machine serves all the same."""
    rows = [line.split()[:2] for line in table.splitlines()[1:]]
    return [[name, "READY" if state == "DEGRADED" else state] for name, state in rows]


@pytest.mark.parametrize(("file", "harm"), harmed("state.json", STATE) + harmed("plan.json", PLAN))
def test_a_strange_record_of_what_runs_is_no_harm(
    state: Path, file: str, harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    with detached(fake_plan(state, name="odd"), state) as odd, detached(fake_plan(state, name="sound"), state):
        sound = pids(state, "sound")
        harm(odd / file)

        assert main.run(["ps"]) == 0
        assert listed(capsys.readouterr().out) == [["odd", "READY"], ["sound", "READY"]]
        assert main.run(["ps", "--json"]) == main.run(["status", "odd"]) == main.run(["metrics", "odd"]) == 0
        assert main.run(["stop", "odd"]) == 0
        assert "stopped: odd; nothing is left of it" in capsys.readouterr().err
        assert pids(state, "sound") == sound


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("state.json", changed(mood="good")),
        ("state.json", changed(state="HIBERNATING")),
        ("state.json", changed(since="noon")),
        ("state.json", without("tail")),
        *(("plan.json", harm) for harm in PLAN.values()),
    ],
)
def test_what_serves_without_a_supervisor_is_adopted_though_its_record_is_strange(
    state: Path, file: str, harm: Harm
) -> None:
    with detached(fake_plan(state), state) as place:
        supervisor, program = pids(state)
        kill(supervisor)
        harm(place / file)

        found = Deployments(state).find("fake")

        assert (found.live, found.news.phase, found.news.pid) == (True, Phase.READY, program)


@pytest.mark.parametrize("handle", [{"pid": "seven"}, {"process": 7}, "7", [7]])
def test_what_may_serve_and_cannot_be_adopted_is_listed_and_stopped(
    state: Path, handle: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with detached(fake_plan(state), state) as place, detached(fake_plan(state, name="sound"), state):
        sound = pids(state, "sound")
        supervisor, program = pids(state)
        kill(supervisor)
        changed(handle=handle)(place / "state.json")

        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[1].split()[:2] == ["fake", "UNKNOWN"]
        assert (
            "fake: it has no supervisor, and it cannot be told whether it serves: the handle of its program" in told.err
        )
        assert is_alive(program)
        assert main.run(["stop", "fake"]) == 0
        assert not is_alive(program)
        assert (Deployments(state).find("fake").news.phase, pids(state, "sound")) == (Phase.STOPPED, sound)


class Careless(ProcessRuntime):
    """A runtime of another package that does not look at what a record has."""

    name = "careless"

    def saved_orders(self, handle: Handle) -> bytes | None:
        raise TypeError(f"what is {handle.daemon}?")

    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        raise TypeError(f"what is {plan['container']}?")


@pytest.mark.parametrize("handle", [None, {"pid": 1, "started": 1, "boot_id": "x", "daemon": "5"}])
def test_a_bug_that_one_record_finds_is_said_of_it_alone(
    state: Path, handle: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._points()["runtime"], "careless", f"{__name__}:Careless")
    place = state / "deployments/odd"
    (place / "run").mkdir(parents=True)
    (place / "plan.json").write_text(json.dumps({"ports": [], "plan": {"runtime": "careless", "container": 5}}))
    (place / "state.json").write_text(json.dumps(_SAID | {"handle": handle}))
    with detached(fake_plan(state, name="sound"), state), detached(fake_plan(state, name="other"), state):
        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        assert listed(told.out) == [["odd", "UNKNOWN"], ["other", "READY"], ["sound", "READY"]]
        assert "odd: TypeError: what is 5?; `rmlaunch stop odd` ends it" in told.err
        assert main.run(["stop", "other"]) == 0
        with pytest.raises(DeploymentError, match=r"^odd cannot be stopped: TypeError: what is 5\?$"):
            main.run(["stop", "--all"])
        assert Deployments(state).find("sound").news.phase is Phase.STOPPED


@pytest.mark.parametrize("harm", [fifo, folder])
def test_what_lies_in_place_of_its_lock_is_said_of_it_alone(
    state: Path, harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    place = state / "deployments/odd"
    place.mkdir(parents=True)
    (place / "plan.json").write_text("{}")
    (place / "state.json").write_text(json.dumps(_SAID))
    (place / "lock").touch()
    harm(place / "lock")
    with detached(fake_plan(state, name="sound"), state):
        assert main.run(["ps"]) == 0
        told = capsys.readouterr()
        assert listed(told.out) == [["odd", "UNKNOWN"], ["sound", "READY"]]
        assert "odd/lock: it is not a regular file; remove it" in told.err
        with pytest.raises(DeploymentError, match=r"odd/lock: it is not a regular file; remove it$"):
            main.run(["stop", "odd"])
        assert pids(state, "sound")


def test_artifacts_are_kept_while_it_cannot_be_told_who_uses_them(state: Path) -> None:
    with detached(fake_plan(state), state) as place:
        assert main.run(["artifact", "prune", "--unused"]) == 0
        fifo(place / "plan.json")

        assert main.run(["artifact", "list"]) == main.run(["artifact", "prune"]) == 0
        with pytest.raises(
            DeploymentError, match=r"^the plan\.json of fake cannot be read, so it cannot be told which"
        ):
            main.run(["artifact", "prune", "--unused"])


def test_what_its_next_supervisor_cannot_take_over_is_listed_and_stopped(state: Path) -> None:
    with detached(fake_plan(state), state) as place:
        supervisor, program = pids(state)
        kill(supervisor)
        folder(place / "control.sock")

        news = Deployments(state).find("fake").news
        assert (news.phase, is_alive(program)) == (Phase.UNKNOWN, True)
        assert news.reason.startswith("fake: it cannot be adopted: its supervisor was killed; see ")
        assert main.run(["stop", "fake"]) == 0
        assert not is_alive(program)


def test_whatever_else_lies_there_a_launch_goes_on(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (file, harm) in enumerate([("state.json", harm) for harm in STATE.values()] +
                                          [("plan.json", harm) for harm in PLAN.values()]):  # fmt: skip
        place = state / f"deployments/odd{number}"
        (place / "run").mkdir(parents=True)
        (place / "plan.json").write_text(json.dumps({"ports": [1], "plan": {"runtime": "process"}}))
        (place / "state.json").write_text(json.dumps(_SAID))
        harm(place / file)
    (state / "deployments/no folder").touch()
    (state / "deployments/away").symlink_to("nowhere")
    away = state / "deployments/plugin"
    (away / "run").mkdir(parents=True)
    (away / "plan.json").write_text(json.dumps({"ports": [], "plan": {"runtime": "of another package"}}))
    (away / "state.json").write_text(json.dumps(_SAID))
    locked = state / "deployments/locked"
    (locked / "lock").mkdir(parents=True)
    (locked / "plan.json").write_text("{}")

    with detached(fake_plan(state, name="sound"), state):
        assert main.run(["ps", "--all", "--json"]) == 0
        told = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
        assert told["sound"]["state"] == "READY"
        assert "of another package" in told["plugin"]["reason"]
        assert len(told) == len(STATE) + len(PLAN) + 3
        for words in (["logs", "sound"], ["restart", "sound"], ["info"], ["artifact", "list"], ["stop", "sound"]):
            assert main.run(words) == 0, words


@contextlib.contextmanager
def other_version(
    state: Path, answers: dict[str, str], last: object = None, name: str = "odd", stops: int = 1
) -> Iterator[Path]:
    """A deployment whose supervisor answers with `answers`."""
    plan = fake_plan(state, name=name)
    ledger = Ledger(state)
    with ledger.exclusive():
        claim = ledger.claim(name, (plan.endpoints.http.port,), plan_json.public(plan))
    (claim.folder / "answers.json").write_text(json.dumps(answers))
    (claim.folder / "stops").write_text(str(stops))
    if last is not None:
        (claim.folder / "last.json").write_text(json.dumps(last))
    claim.lock.close()
    command = [sys.executable, "-m", "tests.fakes.other_version", str(claim.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            yield claim.folder
        finally:
            process.kill()


def line(said: object) -> str:
    return json.dumps(said) + "\n"


@pytest.mark.parametrize(
    ("answer", "phase", "reason"),
    [
        (line(_SAID | {"mood": "good"}), "READY", ""),
        (line({"state": "READY"}), "READY", ""),
        (line({"phase": "READY"}), "UNKNOWN", "its supervisor's word is not understood: phase: None is not known"),
        (line(_SAID | {"state": "HIBERNATING"}), "UNKNOWN", "phase: 'HIBERNATING' is not known"),
        (line(_SAID | {"starts": "two"}), "READY", "its supervisor's word is not understood: starts: 'two' is no int"),
        (line([1]), "UNKNOWN", "odd: its supervisor's answer to status is not understood: it is no JSON object"),
        ("\xff\xfe\x00\n", "UNKNOWN", "odd: its supervisor's answer to status is not understood: it is no JSON"),
        (
            line({"error": "op='status' is not known"}),
            "UNKNOWN",
            "odd: its supervisor refuses status: \"op='status' is not",
        ),
        ("x" * (LIMIT_BYTES + 1), "UNKNOWN", "answer to status is not understood: it has more than 16 MiB"),
    ],
    ids=["more", "less", "no phase", "a phase", "another type", "list", "binary", "refusal", "huge"],
)
def test_the_word_of_another_version_is_taken_as_far_as_it_is_understood(
    state: Path, answer: str, phase: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ops = ("status", "follow", "target", "metrics")
    with (
        other_version(state, dict.fromkeys(ops, answer), _SAID | {"state": "STOPPED", "mood": "calm"}),
        detached(fake_plan(state, name="sound"), state),
    ):
        assert main.run(["ps", "--json"]) == 0
        odd, sound = json.loads(capsys.readouterr().out)
        assert (odd["name"], odd["state"], sound["state"]) == ("odd", phase, "READY")
        assert reason in odd["reason"]
        for words in (["infer", "odd", "hi"], ["metrics", "odd"]):
            with pytest.raises(RmLaunchError, match=r"^odd: its supervisor"):
                main.run(words)
        assert main.run(["stop", "odd"]) == 0
        assert pids(state, "sound")
    wait_for(lambda: not Ledger(state).is_live("odd"))
