"""Orders of detached containers against a real daemon: no program inside can reach them, and nothing of them stays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.base import LaunchPlan
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.supervise.lifecycle import Phase
from tests.containers import lose_supervisor, name_of, nothing_left, plan_of, status
from tests.dockerd import PYTHON, Daemon
from tests.supervision import detached, is_alive, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(120), pytest.mark.usefixtures("docker_host")]

#: looks through all that it sees for its orders, makes them start `touch VICTIM` on the host, then serves
HOSTILE = """
import json, os, sys
victim, orders = sys.argv[1], []
for folder, below, names in os.walk("/"):
    below[:] = [name for name in below if os.path.join(folder, name) not in ("/proc", "/sys", "/dev", "/usr")]
    for path in (os.path.join(folder, name) for name in names):
        if os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
            text = open(path, "rb").read()
            if b"stop_grace_s" in text and text[:1] == b"{":
                orders.append((path, json.loads(text)))
for path, forged in orders:
    forged["runtime"] = "launcher.runtimes.process:ProcessRuntime"
    forged["plan"]["argv"] = ["touch", victim]
    open(path, "w").write(json.dumps(forged))
print("looked", flush=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


def keeper(told: Mapping[str, Any]) -> int:
    """The pid of the process that keeps the orders of a deployment that says `told`."""
    pid = told["handle"]["keeper"]
    assert is_alive(pid)
    return int(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))


def hostile(plan: LaunchPlan, victim: Path) -> LaunchPlan:
    script = textwrap.dedent(HOSTILE)
    return dataclasses.replace(plan, argv=(PYTHON, "-c", script, str(victim), *plan.argv))


@pytest.fixture
def plan(docker_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchPlan:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path))
    return plan_of(docker_daemon, tmp_path)


def test_what_a_container_writes_is_never_run_on_the_host(
    docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan
) -> None:
    victim = tmp_path / "victim"
    plan = hostile(plan, victim)
    with detached(plan, tmp_path) as folder:
        lose_supervisor(folder)
        (found,) = Deployments(tmp_path).all()
        assert (found.news.phase, found.news.starts) == (Phase.READY, 1)
        assert "looked" in Path(found.news.log).read_text()

        kill(found.news.pid or 0)
        wait_for(lambda: status(folder)["starts"] == 2 and status(folder)["state"] == "READY", 20)
        assert status(folder)["handle"]["container"]
    assert not victim.exists()
    assert nothing_left(docker_daemon, plan)


def test_each_start_has_one_keeper_which_ends_with_it(docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan) -> None:
    with detached(plan, tmp_path) as folder:
        first = keeper(status(folder))
        kill(status(folder)["pid"])
        wait_for(lambda: status(folder)["starts"] == 2 and status(folder)["state"] == "READY", 20)
        second = keeper(status(folder))
        assert not is_alive(first)
        assert Path(f"/proc/{second}/environ").read_text() == f"RMLAUNCH_DEPLOYMENT={plan.run_dir}\0"
        assert Path(f"/proc/{second}/cwd").readlink() == Path("/")
    assert not is_alive(second)
    assert nothing_left(docker_daemon, plan)


def test_the_keeper_of_what_nobody_can_adopt_is_ended_with_it(
    docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan
) -> None:
    with detached(plan, tmp_path) as folder:
        kept = keeper(lose_supervisor(folder))
        with contextlib.closing(docker_daemon.client()) as client:
            client.remove_container(name_of(plan), force=True)
        with Ledger(tmp_path).exclusive():
            Ledger(tmp_path).claim("other", (), {}).release()
        assert not is_alive(kept)
        assert nothing_left(docker_daemon, plan)


def test_a_container_whose_keeper_was_killed_is_ended_in_one_sentence(
    docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan
) -> None:
    with detached(plan, tmp_path) as folder:
        kept = keeper(status(folder))
        kill(kept)
        assert status(folder)["state"] == "READY"
        lose_supervisor(folder)
        (found,) = Deployments(tmp_path).all()

        assert (found.news.phase, found.live) == (Phase.FAILED, False)
        assert found.news.reason == (
            f"its supervisor was killed, and so was pid {kept}, which kept its orders for the next one; it has been "
            "ended, start it again"
        )
        assert nothing_left(docker_daemon, plan)


def test_another_process_with_the_keepers_pid_is_not_believed(
    docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan
) -> None:
    with detached(plan, tmp_path) as folder:
        kept = keeper(lose_supervisor(folder))
        change_handle(folder, keeper_started=1)
        (found,) = Deployments(tmp_path).all()

        assert (found.news.phase, found.live) == (Phase.FAILED, False)
        assert f"so was pid {kept}, which kept its orders" in found.news.reason
        assert nothing_left(docker_daemon, plan)


def test_the_record_of_an_older_version_is_not_believed(
    docker_daemon: Daemon, tmp_path: Path, plan: LaunchPlan
) -> None:
    with detached(plan, tmp_path) as folder:
        lose_supervisor(folder)
        change_handle(folder, version=2)
        (found,) = Deployments(tmp_path).all()

        assert (found.news.phase, found.live) == (Phase.FAILED, False)
        assert "its record is of an older rmlaunch, which kept its orders in the container" in found.news.reason
        assert nothing_left(docker_daemon, plan)


def change_handle(folder: Path, **changes: int) -> None:
    record = json.loads((folder / "state.json").read_text())
    record["handle"] |= changes
    (folder / "state.json").write_text(json.dumps(record))
