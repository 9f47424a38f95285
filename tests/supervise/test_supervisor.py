"""A real supervisor over real processes: the misbehaving server and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import ExitedBeforeReady, LaunchPlan, ReadyTimeout
from launcher import plan_json
from launcher.deployments.ledger import Claim
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.serving.hand_over import orders_for
from launcher.supervise.lifecycle import Phase
from tests.supervision import claimed, fake_plan, is_alive, marked_processes, settings, supervised, wait_for


def test_a_server_that_answers_a_real_request_is_ready_and_stops_without_a_trace(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--ready-after", "0.2")

    with supervised(plan, tmp_path) as owner:
        ready = owner.wait_ready()
        owner.stop()
        stopped = owner.wait_final(10)

    assert (ready.phase, ready.starts, ready.crashes) == (Phase.READY, 1, 0)
    assert ready.timings["startup_s"] >= 0.2
    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert marked_processes(plan.run_dir) == []
    assert not Path(plan.run_dir).exists()


def test_answering_503_is_not_ready(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--ready-after", "60", startup_timeout_s=0.5)

    with supervised(plan, tmp_path) as owner, pytest.raises(ReadyTimeout, match=r"not ready after 0.5 s .*503 from"):
        owner.wait_ready()

    assert marked_processes(plan.run_dir) == []


def test_answering_200_with_nothing_in_it_is_not_ready(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--empty-answers", startup_timeout_s=0.5)

    with supervised(plan, tmp_path) as owner, pytest.raises(ReadyTimeout, match="200 from /ask, but no 'answer'"):
        owner.wait_ready()


def test_an_exit_before_ready_is_told_with_its_code_and_last_words(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--exit-at-start", "3", "--say", "the dog ate my weights")

    with supervised(plan, tmp_path) as owner, pytest.raises(ExitedBeforeReady) as failed:
        owner.wait_ready()

    assert "exited 3" in str(failed.value)
    assert "the dog ate my weights" in str(failed.value)
    assert "it ended 3 × before it served" in str(failed.value)


def test_a_cause_that_a_restart_cannot_mend_is_not_tried_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    plan = fake_plan(tmp_path, "--exit-at-start", "1", "--starts-file", str(starts), "--say", "No space left on device")

    with supervised(plan, tmp_path) as owner, pytest.raises(ExitedBeforeReady, match="a disk is full"):
        owner.wait_ready()

    assert len(starts.read_text().splitlines()) == 1


def test_a_program_that_does_not_exist_is_told_by_name(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path), argv=("/nowhere/tritonserver",))

    with supervised(plan, tmp_path) as owner, pytest.raises(ExitedBeforeReady, match="/nowhere/tritonserver"):
        owner.wait_ready()


def test_a_killed_engine_is_started_again_and_serves(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        first = owner.wait_ready().pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: owner.news.phase is Phase.READY and owner.news.starts == 2)
        second = owner.news

    assert second.pid != first
    assert second.crashes == 1
    assert "SIGKILL" in second.reason


def test_a_crash_loop_ends_in_a_verdict(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--exit-at-start", "9")

    with supervised(plan, tmp_path, max_crashes=3) as owner:
        news = owner.wait_final(20)

    assert (news.phase, news.crashes, news.starts, news.served) == (Phase.FAILED, 3, 3, False)
    assert "exited 9" in news.reason


def test_one_that_has_served_is_started_again_after_every_crash(tmp_path: Path) -> None:
    """A request that ends its server may come again and again, and must not end the service for good."""
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path, max_crashes=2) as owner:
        for crashes in range(5):
            wait_for(lambda: owner.news.phase is Phase.READY and owner.news.crashes == crashes)  # noqa: B023
            assert owner.news.pid is not None
            os.kill(owner.news.pid, signal.SIGKILL)
        wait_for(lambda: owner.news.phase is Phase.READY and owner.news.crashes == 5)
        owner.stop()
        stopped = owner.wait_final(10)

    assert (stopped.phase, stopped.starts, stopped.leftovers) == (Phase.STOPPED, 6, ())


def test_one_that_has_served_is_tried_until_its_program_is_back(tmp_path: Path) -> None:
    """Its first start said that it can run here: what cannot be started now was taken away, and may come back."""
    program = tmp_path / "python"
    program.symlink_to(sys.executable)
    plan = fake_plan(tmp_path)
    plan = dataclasses.replace(plan, argv=(str(program), *plan.argv[1:]))

    with supervised(plan, tmp_path) as owner:
        pid = owner.wait_ready().pid
        assert pid is not None
        program.unlink()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: owner.news.phase is Phase.BACKOFF and owner.news.crashes > 3)
        assert "could not start" in owner.news.reason
        program.symlink_to(sys.executable)
        wait_for(lambda: owner.news.phase is Phase.READY)


def test_a_hung_engine_is_found_and_replaced(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        first = owner.wait_ready().pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        wait_for(lambda: owner.news.phase is Phase.READY and owner.news.starts == 2)
        reason = owner.news.reason

    assert "2 liveness checks in a row failed" in reason
    assert not is_alive(first)


def test_stop_kills_a_server_that_ignores_sigterm(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--ignore-sigterm")

    with supervised(plan, tmp_path, stop_grace_s=0.2) as owner:
        pid = owner.wait_ready().pid
        assert pid is not None
        owner.stop()
        stopped = owner.wait_final(10)

    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert not is_alive(pid)


def ask_twice(owner: Supervised) -> None:
    owner.stop()
    owner.stop()


def terminate_twice(owner: Supervised) -> None:
    """As a service manager and an impatient user do."""
    for _ in range(2):
        os.kill(owner._spawned.process.pid, signal.SIGTERM)
        wait_for(lambda: owner.news.phase is Phase.STOPPING)


def terminate_and_ask(owner: Supervised) -> None:
    """As when a service manager ends owner and supervisor at once."""
    os.kill(owner._spawned.process.pid, signal.SIGTERM)
    owner.stop()


@pytest.mark.parametrize("ask", [ask_twice, terminate_twice, terminate_and_ask])
def test_a_second_stop_takes_nothing_of_the_grace(tmp_path: Path, ask: Callable[[Supervised], None]) -> None:
    plan = fake_plan(tmp_path, "--ignore-sigterm")

    with supervised(plan, tmp_path, stop_grace_s=1.0) as owner:
        owner.wait_ready()
        began = time.monotonic()
        ask(owner)
        stopped = owner.wait_final(10)

    assert stopped.phase is Phase.STOPPED
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("stopping", [False, True])
def test_a_kill_waits_for_no_grace(tmp_path: Path, stopping: bool) -> None:
    plan = fake_plan(tmp_path, "--ignore-sigterm")

    with supervised(plan, tmp_path, stop_grace_s=600) as owner:
        owner.wait_ready()
        if stopping:
            owner.stop()
            wait_for(lambda: owner.news.phase is Phase.STOPPING)
        owner.kill()
        stopped = owner.wait_final(5)

    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert marked_processes(plan.run_dir) == []


def test_a_detached_launch_that_is_given_up_before_it_serves_is_killed(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--ignore-sigterm", "--ready-after", "60")
    claim = claimed(plan, tmp_path)
    owner = Supervised(Spawned(), orders_for(plan, claim.folder, settings(3, 600), detached=True), claim)
    wait_for(lambda: owner.news.pid is not None)

    owner.close()

    assert marked_processes(plan.run_dir) == []
    assert not Path(plan.run_dir).exists()


def test_stop_finds_a_grandchild_in_a_session_of_its_own_and_files_left_behind(tmp_path: Path) -> None:
    pid_file, left = tmp_path / "grandchild", tmp_path / "left-1"
    plan = fake_plan(
        tmp_path, "--setsid-child", str(pid_file), "--leave-file", str(left), leftovers=(f"{tmp_path}/left-*",)
    )

    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
        grandchild = int(pid_file.read_text())
        assert is_alive(grandchild)
        owner.stop()
        stopped = owner.wait_final(10)

    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert not is_alive(grandchild)
    assert not left.exists()


def test_a_killed_supervisor_takes_engine_and_grandchild_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    plan = fake_plan(tmp_path, "--setsid-child", str(pid_file))

    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
        owner._spawned.process.kill()
        news = owner.wait_final(10)

    assert (news.phase, news.reason) == (Phase.FAILED, "its supervisor was killed")
    assert marked_processes(plan.run_dir) == []


def test_an_owner_that_is_gone_takes_everything_with_it(tmp_path: Path) -> None:
    """As after kill -9 of a foreground rmlaunch: the kernel closes its end of the control socket."""
    pid_file = tmp_path / "grandchild"
    plan = fake_plan(tmp_path, "--ignore-sigterm", "--setsid-child", str(pid_file))

    with supervised(plan, tmp_path, stop_grace_s=600) as owner:
        owner.wait_ready()
        wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
        owner.close()

        wait_for(lambda: marked_processes(plan.run_dir) == [], timeout_s=2)


def test_the_state_on_disk_says_what_was_announced_last(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        owner.stop()
        owner.wait_final(10)

    state = json.loads((tmp_path / "deployments/fake/state.json").read_text())
    assert state["state"] == "STOPPED"


def test_a_name_is_free_again_when_its_supervisor_has_ended(tmp_path: Path) -> None:
    from launcher.deployments.ledger import Ledger

    plan = fake_plan(tmp_path)
    ledger = Ledger(tmp_path)

    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        assert ledger.is_live("fake")
        assert set(ledger.held_ports()) == {plan.endpoints.http.port}

    assert not ledger.is_live("fake")
    assert set(ledger.held_ports()) == set()
    claimed(plan, tmp_path).release()


def orders(plan: LaunchPlan, claim: Claim) -> dict[str, object]:
    """What an owner sends, for tests that have no owner's side."""
    return {
        "plan": plan_json.whole(plan),
        "runtime": "launcher.runtimes.process:ProcessRuntime",
        "device": "",
        "folder": str(claim.folder),
        "policy": {"max_crashes": 3, "backoff_s": 0.1, "backoff_max_s": 1.0},
        "stop_grace_s": 5.0,
        "stable_s": 60.0,
        "api_key": None,
    }


def test_an_owner_that_is_gone_with_news_unread_is_gone_all_the_same(tmp_path: Path) -> None:
    """The kernel then says ECONNRESET and not end-of-file."""
    pid_file = tmp_path / "grandchild"
    plan = fake_plan(tmp_path, "--setsid-child", str(pid_file))
    spawned, claim = Spawned(), claimed(plan, tmp_path)
    with (tmp_path / "words").open("ab") as output:
        spawned.give(json.dumps(orders(plan, claim)).encode(), claim.lock, output.fileno())
    claim.lock.close()
    state = claim.folder / "state.json"
    wait_for(lambda: state.exists() and json.loads(state.read_text())["state"] == "READY")

    spawned.control.close()  # as the kernel does for a killed owner: no shutdown first

    assert spawned.process.wait(10) == 0, (tmp_path / "words").read_text()
    assert marked_processes(plan.run_dir) == []
    assert not Path(plan.run_dir).exists()


def test_a_stop_in_the_moment_of_a_crash_is_not_lost(tmp_path: Path) -> None:
    """As when a service manager ends everybody at once."""
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        engine = owner.wait_ready().pid
        supervisor = owner._spawned.process.pid
        assert engine is not None
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(engine, signal.SIGKILL)
        os.kill(supervisor, signal.SIGTERM)
        os.kill(supervisor, signal.SIGCONT)
        news = owner.wait_final(10)

    assert (news.phase, news.starts) == (Phase.STOPPED, 1)


def test_state_that_cannot_be_written_does_not_end_the_engine(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        pid = owner.wait_ready().pid
        folder = tmp_path / "deployments/fake"
        wait_for(lambda: '"READY"' in (folder / "state.json").read_text())
        (folder / "state.json").unlink()
        (folder / "state.json").mkdir()
        owner.stop()
        stopped = owner.wait_final(10)

    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert pid is not None
    assert not is_alive(pid)


def test_what_both_killed_left_is_ended_by_the_next_claim(tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    plan = fake_plan(tmp_path, "--setsid-child", str(pid_file))
    spawned, claim = Spawned(), claimed(plan, tmp_path)
    with (tmp_path / "words").open("ab") as output:
        spawned.give(json.dumps(orders(plan, claim)).encode(), claim.lock, output.fileno())
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
    grandchild = int(pid_file.read_text())
    spawned.process.kill()
    spawned.close()
    claim.lock.close()
    assert is_alive(grandchild)

    claimed(plan, tmp_path).release()

    wait_for(lambda: not is_alive(grandchild))


def test_a_listener_that_fails_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        owner._on_news = lambda _: 1 / 0  # type: ignore[assignment]
        assert owner.wait_ready().phase is Phase.READY
        owner.stop()
        assert owner.wait_final(10).phase is Phase.STOPPED

    assert "a listener failed" in caplog.text


def test_the_supervisor_imports_nothing_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "selectors.py").write_text("raise SystemExit('imported from the current folder')\n")
    monkeypatch.chdir(tmp_path)
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        assert owner.wait_ready().phase is Phase.READY


def test_the_engines_temporary_files_are_short_and_go_with_it(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)

    with supervised(plan, tmp_path) as owner:
        pid = owner.wait_ready().pid
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        (folder,) = [Path(text[7:].decode()) for text in variables if text.startswith(b"TMPDIR=")]
        assert folder.is_dir()
        assert len(str(folder)) < 40
        owner.stop()
        owner.wait_final(10)

    assert not folder.exists()


def test_another_server_on_the_same_port_does_not_make_it_ready(tmp_path: Path) -> None:
    """A server that binds late finds its port taken; meanwhile whoever took it answers every probe."""
    plan = fake_plan(tmp_path, "--bind-nothing", startup_timeout_s=1.0)
    with subprocess.Popen(plan.argv[:4]) as other:
        try:
            with supervised(plan, tmp_path) as owner, pytest.raises(ReadyTimeout, match="another process answers on"):
                owner.wait_ready()
        finally:
            other.kill()
