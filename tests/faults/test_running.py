"""Faults that strike a deployment that serves. The rows share it, and stand so that it is rarely started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from launcher.supervise.lifecycle import Phase
from tests.faults import machine
from tests.faults.columns import FAKE, NO_WORKER
from tests.faults.conftest import Here
from tests.faults.deployment import Deployment
from tests.faults.fault import Cell, fault
from tests.supervision import wait_for

_LIVENESS_S = 30.0  #: generous: the settings of the tests find a hung engine in about 7 s

_NO_WORKER = dict.fromkeys(("llamacpp", "llamacpp (docker)"), NO_WORKER)


@fault(
    "disk full, for the logs", must="serves on, its log can be read; after a kill -9 it is started again without one"
)
def test_it_serves_on_with_no_room_for_its_logs(here: Here, cell: Cell) -> None:
    shared = here.shared()
    before = shared.news()

    with machine.full(shared.folder / "logs"):
        for _ in range(3):
            assert shared.is_answering(here.column.load_s)
        assert shared.rmlaunch("logs", shared.name).returncode == 0
        assert (shared.news().pid, shared.news().starts) == (before.pid, before.starts)

        _recovers(here, shared, cell, lambda: os.kill(shared.leader(), signal.SIGKILL))


@fault(
    "disk full, for the state", must="serves on, `ps` and `status` are right, a crash is mended; a new one is refused"
)
def test_it_serves_on_with_no_room_for_its_state(here: Here, cell: Cell) -> None:
    shared, other, second = here.shared(), here.deployment("other", FAKE), here.deployment("second")
    before = shared.news()
    code, errors = other.start(detached=True).finish(FAKE.load_s)
    assert code == 0, errors

    with machine.full(here.state):
        assert shared.is_answering(here.column.load_s)
        _recovers(here, other, cell, lambda: os.kill(other.leader(), signal.SIGKILL))
        for verb in (("ps",), ("status", shared.name), ("status", other.name)):
            assert "READY" in shared.rmlaunch(*verb).stdout
        if here.column.real:
            code, errors = second.start(detached=True).finish(30)
            assert code == 1, errors
            assert "No space left on device" in errors
            assert len(errors.splitlines()) <= 2, errors

    assert (shared.news().pid, shared.news().starts) == (before.pid, before.starts)
    assert shared.is_answering()
    assert second.processes() == {}
    assert not second.run_dir.exists()


@fault("kill -9 supervisor, detached", must="serves on; the next command adopts it, same pid, without a new load")
def test_a_detached_engine_outlives_its_supervisor_and_is_adopted(here: Here, cell: Cell) -> None:
    shared = here.shared()
    before, old, plan = shared.news(), shared.processes(), shared.plan()
    assert before.supervisor is not None

    os.kill(before.supervisor, signal.SIGKILL)
    wait_for(lambda: shared.listed() is None)
    assert shared.processes().keys() == old.keys()
    began = time.monotonic()
    listed = shared.rmlaunch("ps").stdout
    cell.again_s = time.monotonic() - began

    assert "READY" in listed
    after = shared.news()
    assert after.supervisor != before.supervisor
    assert (after.phase, after.pid, after.starts) == (Phase.READY, before.pid, before.starts)
    assert shared.plan() == plan
    shared.prove_it_answers()
    left = shared.processes().keys() - old.keys()
    cell.left = len(left)
    assert not left


@fault("kill -9 a worker", must="a real request is answered again, by a new worker", absent=_NO_WORKER)
def test_a_killed_worker_is_replaced(here: Here, cell: Cell) -> None:
    shared = here.shared()
    before, old, worker = shared.news(), shared.processes(), shared.worker()
    assert worker is not None

    with shared.witness() as witness:
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        while not (shared.worker() not in (None, worker) and shared.is_answering()):
            assert time.monotonic() < began + _LIVENESS_S + here.column.load_s, shared.news()
            time.sleep(0.05)
        cell.again_s = time.monotonic() - began
        if shared.news().starts > before.starts:  # else the engine mended itself
            cell.seen_s = witness.wait(lambda news: news.phase is not Phase.READY, 0.1)[0] - began
            witness.wait_ready(here.column.load_s, before.starts + 1)

    shared.prove_it_answers()
    mended = shared.news().starts == before.starts
    left = shared.remains({key: command for key, command in old.items() if key[0] == worker} if mended else old)
    cell.left = len(left)
    assert left == []


@fault("SIGSTOP a worker", must="found by liveness, though the engine says 200; started again", absent=_NO_WORKER)
def test_a_hung_worker_is_found(here: Here, cell: Cell) -> None:
    shared = here.shared()
    worker = shared.worker()
    assert worker is not None

    _recovers(here, shared, cell, lambda: os.kill(worker, signal.SIGSTOP))


@fault("SIGSTOP engine leader", must="found by liveness and started again")
def test_a_hung_leader_is_found(here: Here, cell: Cell) -> None:
    shared = here.shared()
    leader = shared.leader()

    _recovers(here, shared, cell, lambda: os.kill(leader, signal.SIGSTOP))


@fault("kill -9 engine leader", must="seen at once, started again at once, nothing left of the old one")
def test_a_killed_leader_is_seen(here: Here, cell: Cell) -> None:
    shared = here.shared()
    leader = shared.leader()

    _recovers(here, shared, cell, lambda: os.kill(leader, signal.SIGKILL))

    assert cell.seen_s is not None
    assert cell.seen_s < 5


@fault("kill -9 while loading", must="seen at once and started again; counted as a crash")
def test_a_leader_killed_while_it_loads_is_started_again(here: Here, cell: Cell) -> None:
    shared = here.shared()
    starts = shared.news().starts
    with shared.witness() as witness:
        with shared.connection() as connection:
            connection.tell("restart")
        _, news = witness.wait(lambda news: news.starts == starts + 1 and news.pid is not None, 30)
        assert news.pid is not None
        leader = news.pid
        wait_for(lambda: shared.processor_s(leader) >= here.column.loading_cpu_s, here.column.load_s)
        assert shared.news().phase is Phase.STARTING

        _recovers(here, shared, cell, lambda: os.kill(leader, signal.SIGKILL))
        witness.wait(lambda news: news.crashes == 1, 0.1)

    assert shared.news().starts == starts + 2


@fault(
    "docker's daemon restarted",
    must="its containers end with it (no live-restore); started again once it is back",
    absent=dict.fromkeys(("fake", "triton", "torchserve", "vllm", "llamacpp"), "it is no container"),
)
def test_a_daemon_that_is_restarted_is_waited_for(here: Here, cell: Cell) -> None:
    shared, daemon = here.shared(), here.daemon
    assert daemon is not None
    if not daemon.own:
        machine.not_here("the Docker daemon is not the tests' own")

    _recovers(here, shared, cell, daemon.restart)


def _recovers(here: Here, shared: Deployment, cell: Cell, strike: Callable[[], None]) -> None:
    """After `strike` it is started again and serves, and nothing is left of what ran before."""
    before, old = shared.news(), shared.processes()

    with shared.witness() as witness:
        began = time.monotonic()
        strike()
        seen, first = witness.wait(
            lambda news: news.phase is Phase.DEGRADED or news.starts > before.starts, _LIVENESS_S
        )
        cell.seen_s = seen - began
        cell.again_s = witness.wait_ready(here.column.load_s, before.starts + 1) - began

    assert first.reason
    shared.prove_it_answers()
    left = shared.remains(old)
    cell.left = len(left)
    assert left == []
