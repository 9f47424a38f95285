"""What is left when a deployment ends: asked to, or because whoever owns it was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from launcher.supervise.lifecycle import Phase
from tests.faults.columns import NO_SESSION
from tests.faults.conftest import Here
from tests.faults.deployment import Deployment, running
from tests.faults.fault import Cell, fault
from tests.supervision import is_alive, wait_for

_GRACE_S = 1.0  #: supervise.stop_grace_s of all of them
_KILLED_S = 2.0  #: what the issue allows after kill -9
_SWEEP_S = 10.0
_SLOW_S = 3.0


@fault(
    "setsid grandchild at stop",
    must="`stop` ends it, though in a session of its own (fake: deaf to TERM too); nothing left",
    absent=dict.fromkeys(("triton", "triton (docker)", "vllm", "llamacpp", "llamacpp (docker)"), NO_SESSION),
)
def test_stop_finds_a_process_in_a_session_of_its_own(here: Here, cell: Cell) -> None:
    shared = here.shared()
    ports = shared.ports()
    grandchild = shared.leader() if here.column.real else int(here.grandchild.read_text())
    assert grandchild != shared.news().pid
    assert os.getsid(grandchild) == grandchild

    _stop(shared, cell)

    assert not is_alive(grandchild)
    _assert_gone(shared, ports, cell)


@fault("none: `stop`", must="it says that nothing is left, and nothing is: processes, ports, /dev/shm, files")
def test_stop_leaves_nothing(here: Here, cell: Cell) -> None:
    shared = here.shared()
    ports = shared.ports()

    _stop(shared, cell)

    _assert_gone(shared, ports, cell)


def _stop(deployment: Deployment, cell: Cell) -> None:
    began = time.monotonic()
    done = deployment.rmlaunch("stop", deployment.name)
    cell.again_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "nothing is left of it" in done.stderr


@fault("slow load", must="STARTING for as long as it takes, one start, then READY")
def test_a_slow_load_is_waited_for(here: Here, cell: Cell) -> None:
    slow = here.deployment("slow")
    began = time.monotonic()

    with running(slow, "--ready-after", "2"):  # the fake loads nothing: it would serve before it is stopped
        leader = slow.starting()
        wait_for(lambda: slow.processor_s(leader) >= here.column.loading_cpu_s / 2, here.column.load_s)
        with slow.witness() as witness:
            stopped = [pid for pid, _ in slow.processes()]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            resume = time.monotonic() + _SLOW_S
            wait_for(lambda: time.monotonic() > resume)
            assert slow.news().phase is Phase.STARTING
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            cell.again_s = witness.wait_ready(here.column.load_s) - began
        news = slow.news()

        assert cell.again_s > _SLOW_S
        assert (news.starts, news.crashes) == (1, 0)
        slow.prove_it_answers()


@fault("TERM ignored", must="killed when the grace is over (1 s here); STOPPED, nothing left")
def test_an_engine_that_ignores_term_is_killed(here: Here, cell: Cell) -> None:
    deaf = here.deployment("deaf")

    with running(deaf, "--ignore-sigterm") as launcher:
        ports, leader = _ready(deaf, here), deaf.news().pid
        assert leader is not None
        if here.column.real:  # stopped, it hears nothing but KILL
            os.kill(leader, signal.SIGSTOP)
        began = time.monotonic()
        launcher.process.send_signal(signal.SIGTERM)
        code, errors = launcher.finish(_GRACE_S + _SWEEP_S)
        cell.again_s = time.monotonic() - began

        assert code == 0, errors
        assert cell.again_s > _GRACE_S
        assert not is_alive(leader)
        _assert_gone(deaf, ports, cell)


@fault("kill -9 rmlaunch, foreground", must="engine and workers gone within 2 s")
def test_a_killed_launcher_takes_everything_with_it(here: Here, cell: Cell) -> None:
    owned = here.deployment("owned")

    with running(owned) as launcher:
        ports = _ready(owned, here)
        launcher.process.kill()
        cell.again_s = owned.wait_gone(_KILLED_S)

        wait_for(lambda: not Path(owned.run_dir).exists(), _SWEEP_S)
        wait_for(lambda: owned.listed() is None, _SWEEP_S)
        _assert_gone(owned, ports, cell)


@fault("kill -9 supervisor, foreground", must="engine and workers gone within 2 s; rmlaunch says so and exits 1")
def test_a_killed_supervisor_takes_everything_with_it(here: Here, cell: Cell) -> None:
    owned = here.deployment("orphaned")

    with running(owned) as launcher:
        ports, supervisor = _ready(owned, here), owned.news().supervisor
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        cell.again_s = owned.wait_gone(_KILLED_S)
        code, errors = launcher.finish(_SWEEP_S)

        assert code == 1, errors
        assert "its supervisor was killed" in errors
        _assert_gone(owned, ports, cell)


def _ready(deployment: Deployment, here: Here) -> list[int]:
    """Wait until it serves; returns its ports."""
    deployment.starting()
    with deployment.witness() as witness:
        witness.wait_ready(here.column.load_s)
    return deployment.ports()


def _assert_gone(deployment: Deployment, ports: list[int], cell: Cell) -> None:
    left = deployment.leftovers(ports)
    cell.left = len(left)
    assert left == []
