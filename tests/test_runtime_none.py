"""The runtime that starts nothing, under a real supervisor."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import ExitedBeforeReady, LaunchPlan
from launcher.runtimes.base import Exit, Handle
from launcher.runtimes.none import NoRuntime
from launcher.supervise.lifecycle import Phase
from tests.supervision import FAKE, fake_plan, is_alive, supervised, wait_for


@pytest.fixture
def somebody_elses(tmp_path: Path) -> Iterator[tuple[LaunchPlan, subprocess.Popen[bytes]]]:
    """A plan that watches a server which this test has started."""
    plan = fake_plan(tmp_path)
    server = subprocess.Popen([sys.executable, str(FAKE), "--port", str(plan.endpoints.http.port)])
    yield dataclasses.replace(plan, runtime="none", argv=()), server
    server.kill()
    server.wait(10)


def test_it_runs_until_it_is_told_to_end(tmp_path: Path) -> None:
    runtime, plan = NoRuntime(), fake_plan(tmp_path)
    handle = runtime.start(plan, tmp_path / "log")

    assert handle == Handle(0, 0, "")
    assert (tmp_path / "log").exists()
    assert runtime.poll(handle) is None
    assert runtime.listens(handle, plan.endpoints.http.port)
    runtime.terminate(handle)
    assert runtime.poll(handle) == Exit(-signal.SIGTERM)
    assert runtime.sweep(plan) == ()


def test_a_start_that_was_swept_is_over(tmp_path: Path) -> None:
    runtime, plan = NoRuntime(), fake_plan(tmp_path)
    handle = runtime.start(plan, tmp_path / "log")

    assert runtime.sweep(plan) == ()
    assert runtime.poll(handle) is not None


def test_a_server_of_somebody_else_is_ready_and_outlives_the_stop(
    somebody_elses: tuple[LaunchPlan, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    plan, server = somebody_elses
    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        assert owner.news.phase is Phase.READY
        owner.stop()
        stopped = owner.wait_final(10)

    assert (stopped.phase, stopped.leftovers, stopped.starts) == (Phase.STOPPED, (), 1)
    assert is_alive(server.pid)
    assert not Path(plan.run_dir).exists()


def test_a_server_that_goes_away_is_degraded_and_waited_for(
    somebody_elses: tuple[LaunchPlan, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    plan, server = somebody_elses
    settings = dataclasses.replace(plan.probes.settings, startup_timeout_s=0.3)
    plan = dataclasses.replace(plan, probes=dataclasses.replace(plan.probes, settings=settings))
    with supervised(plan, tmp_path, max_crashes=2) as owner:
        owner.wait_ready()
        server.kill()
        wait_for(lambda: owner.news.phase is Phase.DEGRADED)
        wait_for(lambda: owner.news.phase is Phase.BACKOFF and owner.news.crashes > 2)  # TimedOut, by then
        assert f"nothing listens on {plan.endpoints.http}" in owner.news.reason
        with subprocess.Popen([sys.executable, str(FAKE), "--port", str(plan.endpoints.http.port)]) as again:
            wait_for(lambda: owner.news.phase is Phase.READY)
            owner.stop()
            assert owner.wait_final(10).phase is Phase.STOPPED
            again.kill()


def test_a_server_that_was_never_there_is_told_so(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path, startup_timeout_s=0.3), runtime="none", argv=())
    with supervised(plan, tmp_path) as owner, pytest.raises(Exception, match="nothing listens on") as info:
        owner.wait_ready()

    assert not isinstance(info.value, ExitedBeforeReady)
