"""Stopping several, whatever one of them does: supervisors that hang, launches that are being prepared, wrong names."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import DeploymentError, RequestError
from launcher.cli import main
from launcher.deployments.holders import holders
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase
from tests.deployments.test_records import pids
from tests.supervision import detached, fake_plan, is_alive, marked_processes, wait_for

pytestmark = pytest.mark.timeout(90)

#: claim argv[1], start a program as an engine's, and wait until stdin ends
LAUNCHER = """\
import os, signal, subprocess, sys
from launcher.deployments.ledger import Ledger
from launcher.paths import state_root

ledger = Ledger(state_root())
with ledger.exclusive():
    claim = ledger.claim(sys.argv[1], (), {})
run = claim.folder / "run"
run.mkdir()
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
wait = [sys.executable, "-c", "import time; print(flush=True); time.sleep(300)"]
with subprocess.Popen(wait, env={**os.environ, "RMLAUNCH_DEPLOYMENT": str(run)}, stdout=subprocess.PIPE) as engine:
    engine.stdout.readline()
    print("prepares", flush=True)
    sys.stdin.read()
"""

#: have argv[1] open, and no lock of it
READER = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"

#: the owner of argv[1], as a launch in the foreground is
OWNER = """\
import sys
from pathlib import Path
from tests.supervision import fake_plan, supervised

state = Path(sys.argv[1])
with supervised(fake_plan(state, name="owned"), state) as owner:
    owner.wait_ready()
    print("serves", flush=True)
    print(owner.wait_final().reason, flush=True)
"""


@contextlib.contextmanager
def running(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said its first line."""
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def stopping(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `rmlaunch stop` that runs beside the test."""
    with subprocess.Popen([sys.executable, "-m", "launcher", "stop", name], stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    """The process stands still: it is there, and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def state() -> Path:
    return state_root()


def phases(state: Path) -> dict[str, Phase]:
    return {item.name: item.news.phase for item in Deployments(state).all()}


@pytest.mark.usefixtures("_impatient")
def test_all_the_others_are_stopped_and_who_does_not_answer_is_told(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        detached(fake_plan(state, name="a"), state),
        detached(fake_plan(state, name="hung"), state),
        detached(fake_plan(state, name="z"), state),
    ):
        supervisor, program = pids(state, "hung")
        with halted(supervisor):
            began = time.monotonic()
            with pytest.raises(DeploymentError) as caught:
                main.run(["stop", "--all"])

            assert str(caught.value) == (
                "hung: its supervisor does not answer; `rmlaunch stop hung --now` ends it by force"
            )
            assert time.monotonic() - began < 12
            told = capsys.readouterr().err
            assert "stopped: a; nothing is left of it" in told
            assert "stopped: z; nothing is left of it" in told
            assert is_alive(program)

            assert main.run(["stop", "--all", "--now"]) == 0
            assert (is_alive(supervisor), is_alive(program)) == (False, False)
        assert phases(state) == dict.fromkeys(("a", "hung", "z"), Phase.STOPPED)
        assert marked_processes(str(state / "deployments/hung/run")) == []
        assert not (state / "deployments/hung/run").exists()


@pytest.mark.usefixtures("_impatient")
def test_a_state_that_says_stopped_is_no_reason_to_leave_what_runs(state: Path) -> None:
    with detached(fake_plan(state), state) as folder:
        supervisor, program = pids(state)
        with halted(supervisor):
            said = json.loads((folder / "state.json").read_text())
            (folder / "state.json").write_text(json.dumps(said | {"state": "STOPPED"}))

            assert main.run(["stop", "fake", "--now"]) == 0

        assert (is_alive(supervisor), is_alive(program)) == (False, False)


@pytest.mark.usefixtures("_impatient")
def test_supervisors_that_hang_are_listed_as_such_and_keep_nobody_waiting(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "c")
    with contextlib.ExitStack() as stack:
        for name in (*names, "sound"):
            stack.enter_context(detached(fake_plan(state, name=name), state))
        found = {name: pids(state, name) for name in names}
        for supervisor, _ in found.values():
            stack.enter_context(halted(supervisor))
        began = time.monotonic()

        assert main.run(["ps"]) == 0

        assert time.monotonic() - began < 4
        told = capsys.readouterr()
        assert [line.split()[:2] for line in told.out.splitlines()[1:]] == [
            *([name, "UNKNOWN"] for name in names),
            ["sound", "READY"],
        ]
        assert told.err.count("its supervisor does not answer; `rmlaunch stop") == 3
        began = time.monotonic()
        assert main.run(["metrics", "sound"]) == 0
        assert time.monotonic() - began < 1  # the others are not its business
        monkeypatch.setattr("launcher.deployments.records._ASK_TIMEOUT_S", 0.2)
        for words in (["metrics", "a"], ["infer", "a", "hi"], ["restart", "a"]):
            with pytest.raises(DeploymentError, match="a: its supervisor does not answer"):
                main.run(words)
        assert main.run(["logs", "a"]) == 0
        assert [is_alive(program) for _, program in found.values()] == [True] * 3
        assert main.run(["stop", "--now", *names]) == 0


def test_what_is_being_prepared_is_stopped_by_ending_who_prepares_it(state: Path) -> None:
    with running(LAUNCHER, "new") as launcher, detached(fake_plan(state), state):
        assert phases(state) == {"fake": Phase.READY, "new": Phase.PREPARING}

        assert main.run(["stop", "--all"]) == 0

        assert launcher.wait(10) == -signal.SIGTERM
        assert phases(state) == {"fake": Phase.STOPPED, "new": Phase.STOPPED}
        assert marked_processes(str(state / "deployments/new/run")) == []
        assert not (state / "deployments/new/run").exists()


def test_a_launcher_that_does_not_end_is_named_and_killed_only_when_asked(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.deployments.records._END_S", 0.5)
    with running(LAUNCHER, "new", "stubborn") as launcher:
        with pytest.raises(DeploymentError, match=rf"^new is held by pid {launcher.pid} \(.*`rmlaunch stop new --now`"):
            main.run(["stop", "new"])
        assert launcher.poll() is None

        assert main.run(["stop", "new", "--now"]) == 0

        assert launcher.wait(10) == -signal.SIGKILL
        assert phases(state) == {"new": Phase.STOPPED}


@pytest.mark.usefixtures("_impatient")
def test_the_owner_of_a_supervisor_that_hangs_goes_on_to_its_own_end(state: Path) -> None:
    with running(OWNER, str(state)) as owner:
        supervisor, program = pids(state, "owned")
        with halted(supervisor):
            assert main.run(["stop", "owned", "--now"]) == 0

        assert owner.communicate(timeout=10)[0] == "its supervisor was killed\n"
        assert owner.returncode == 0
        assert (is_alive(program), phases(state)) == (False, {"owned": Phase.STOPPED})


def test_a_wrong_name_keeps_nobody_from_being_stopped(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with detached(fake_plan(state), state):
        with pytest.raises(RequestError, match="deployment 'fakee' not found; did you mean 'fake'"):
            main.run(["stop", "fakee", "fake", "fake"])
        assert phases(state) == {"fake": Phase.STOPPED}
        capsys.readouterr()

        assert main.run(["stop", "x", "fake"]) == 2
        assert capsys.readouterr().err.splitlines() == [
            "error: deployment 'x' not found; none runs and none has failed",
            "error: fake is STOPPED, not running; start it with `rmlaunch up -d`",
        ]


@pytest.mark.usefixtures("_impatient")
def test_one_that_failed_makes_it_a_failure_whatever_else_was_wrong(state: Path) -> None:
    with detached(fake_plan(state), state), halted(pids(state)[0]):
        assert main.run(["stop", "x", "fake"]) == 1


def test_a_drain_takes_its_time_as_long_as_the_supervisor_is_there(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace of 2.5 s is more than a silence may last."""
    monkeypatch.setattr("launcher.deployments.connection._ANSWER_S", 1.0)
    monkeypatch.setattr("launcher.deployments.connection._BUSY_S", 1.0)
    monkeypatch.setattr("launcher.deployments.connection._PING_S", 0.2)
    with detached(fake_plan(state, "--ignore-sigterm"), state, stop_grace_s=2.5):
        began = time.monotonic()
        assert main.run(["stop", "fake"]) == 0
        assert time.monotonic() - began >= 2.5


def test_a_second_stop_takes_nothing_of_the_grace_that_the_first_has_given(state: Path) -> None:
    """Two people, or a person and a service manager: neither of them has asked to kill it."""
    with detached(fake_plan(state, "--ignore-sigterm"), state, stop_grace_s=2.0) as folder:
        _, program = pids(state)
        began = time.monotonic()
        with stopping("fake") as first:
            wait_for(lambda: json.loads((folder / "state.json").read_text())["state"] == "STOPPING")
            with stopping("fake") as second:
                assert (first.wait(20), second.wait(20)) == (0, 0)
        assert time.monotonic() - began >= 2.0
        assert not is_alive(program)


@pytest.mark.parametrize("words", [["kill", "fake"], ["kill", "--all"], ["stop", "fake", "--now"]])
def test_a_kill_ends_at_once_what_is_being_drained(state: Path, words: list[str]) -> None:
    with detached(fake_plan(state, "--ignore-sigterm"), state, stop_grace_s=600.0) as folder:
        _, program = pids(state)
        with stopping("fake") as polite:
            wait_for(lambda: json.loads((folder / "state.json").read_text())["state"] == "STOPPING")
            began = time.monotonic()
            assert main.run(words) == 0
            assert time.monotonic() - began < 5
            assert polite.wait(20) == 0  # it has stopped, and nothing is left of it
        assert not is_alive(program)
        assert phases(state) == {"fake": Phase.STOPPED}


def test_a_kill_gives_no_grace(state: Path) -> None:
    with detached(fake_plan(state, "--ignore-sigterm"), state, stop_grace_s=600.0):
        _, program = pids(state)
        assert main.run(["kill", "fake"]) == 0
        assert not is_alive(program)
        with pytest.raises(RequestError, match="fake is STOPPED, not running"):
            main.run(["kill", "fake"])


def test_what_takes_too_long_is_told_as_such(state: Path) -> None:
    with (
        detached(fake_plan(state), state),
        Deployments(state).find("fake").connect() as connection,
        pytest.raises(DeploymentError, match=r"^fake takes longer than expected; see `rmlaunch status fake`$"),
    ):
        connection.until(lambda news: news.phase is Phase.FAILED, deadline=time.monotonic() + 0.2)


def test_a_supervisor_that_begins_to_hang_in_a_drain_is_told(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.deployments.connection._BUSY_S", 1.0)
    monkeypatch.setattr("launcher.deployments.connection._PING_S", 0.1)
    with detached(fake_plan(state, "--ignore-sigterm"), state, stop_grace_s=2.5):
        supervisor, _ = pids(state)
        with Deployments(state).find("fake").connect() as connection:
            connection.until(lambda news: news.phase is Phase.STOPPING, "stop")
            with halted(supervisor), pytest.raises(DeploymentError, match="does not answer"):
                connection.until(lambda news: news.phase.final)


def test_the_holders_of_a_lock_are_those_that_have_it_open_and_locked(state: Path) -> None:
    with running(LAUNCHER, "new") as launcher:
        lock = state / "deployments/new/lock"
        with running(READER, str(lock)):
            assert [holder.pid for holder in holders(lock)] == [launcher.pid]
        launcher.kill()
        launcher.wait(10)
        wait_for(lambda: not Ledger(state).is_live("new"))
        assert holders(lock) == []


def ended_with(state: Path, left: str, **plan: object) -> Path:
    """The folder of a deployment whose end has left something."""
    folder = state / "deployments/odd"
    (folder / "run").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"ports": [], "plan": plan}))
    (folder / "state.json").write_text(json.dumps({"state": "FAILED", "reason": "a crash", "leftovers": [left]}))
    return folder


@pytest.mark.parametrize("words", [["odd"], ["odd", "--now"], ["--all"]])
def test_what_an_end_has_left_is_listed_until_a_stop_has_ended_it(
    state: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ended_with(state, "pid 7 (server)")
    env = {**os.environ, "RMLAUNCH_DEPLOYMENT": str(folder / "run")}
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(300)"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            program.stdout.readline()
            assert main.run(["ps"]) == 0
            told = capsys.readouterr()
            assert told.out.splitlines()[1].split()[:2] == ["odd", "FAILED"]
            assert told.err == "odd: still there: pid 7 (server); `rmlaunch stop odd` tries again to end it\n"

            assert main.run(["stop", *words]) == 0
            assert program.wait(10) == -signal.SIGKILL
        finally:
            program.kill()
    assert main.run(["ps"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not (folder / "run").exists()
    with pytest.raises(RequestError, match="odd is STOPPED, not running"):
        main.run(["stop", "odd"])


def test_what_cannot_be_ended_is_said_by_each_stop(state: Path) -> None:
    ended_with(state, "its container", runtime="docker", container={"daemon": f"unix://{state}/away.sock"})

    for _ in range(2):
        with pytest.raises(DeploymentError, match=r"^odd did not stop cleanly: its container, which cannot be removed"):
            main.run(["stop", "odd"])
        assert Deployments(state).find("odd").there
    with pytest.raises(RequestError, match=r"^odd is STOPPED, not running; start it"):
        main.run(["infer", "odd", "hi"])


def test_what_cannot_be_ended_is_not_forgotten_by_a_launch_of_its_name(state: Path) -> None:
    folder = ended_with(state, "its container", runtime="docker", container={"daemon": f"unix://{state}/away.sock"})
    record = (folder / "plan.json").read_text()

    with pytest.raises(DeploymentError, match=r"^odd: of its last start there is still its container, which cannot be"):
        Ledger(state).claim("odd", (), {})

    assert (folder / "plan.json").read_text() == record
    assert Deployments(state).find("odd").there


def test_what_another_launch_has_ended_is_listed_no_more(state: Path) -> None:
    folder = ended_with(state, "pid 7 (server)")

    with detached(fake_plan(state, name="other"), state):
        assert not (folder / "run").exists()
        assert not Deployments(state).find("odd").there
