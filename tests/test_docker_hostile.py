"""Programs in containers that want to reach the host by the files that they may write, against a real daemon."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import LaunchPlan
from launcher.lifecycle import Phase
from tests.containers import nothing_left, plan_of
from tests.dockerd import PYTHON, Daemon
from tests.supervision import supervised, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(120), pytest.mark.usefixtures("docker_host")]

#: puts links to VICTIM wherever it may, and a folder that is too deep for whoever goes through it, then serves
HOSTILE = """
import os, sys
home = os.getcwd()
for folder in (home, *(entry.path for entry in os.scandir(home) if entry.is_dir(follow_symlinks=False))):
    try:
        os.symlink(sys.argv[1], folder + "/tmp")
        for _ in range(2000):
            os.mkdir("deep")
            os.chdir("deep")
    except OSError as exc:
        print(exc, flush=True)
print("looked", flush=True)
os.chdir(home)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host that no container has business with."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("x")
    yield folder
    subprocess.run(["/bin/rm", "-rf", str(tmp_path / "deployments")], check=True)  # else it would stay in pytest's way


def hostile(plan: LaunchPlan, victim: Path) -> LaunchPlan:
    return dataclasses.replace(plan, argv=(PYTHON, "-c", HOSTILE, str(victim), *plan.argv))


def test_a_link_that_a_container_leaves_is_not_followed_when_it_crashes_and_is_stopped(
    docker_daemon: Daemon, tmp_path: Path, victim: Path
) -> None:
    plan = hostile(plan_of(docker_daemon, tmp_path), victim)
    with supervised(plan, tmp_path) as owner:
        before = owner.wait_ready()
        assert "looked" in Path(before.log).read_text()
        os.kill(before.pid or 0, signal.SIGKILL)
        wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 20)
        assert (victim / "precious").exists()
        owner.stop()
        news = owner.wait_final(20)

    assert (news.phase, news.leftovers) == (Phase.STOPPED, ())
    assert (victim / "precious").exists()
    assert not Path(plan.run_dir).exists()
    assert nothing_left(docker_daemon, plan)


def test_nor_when_it_takes_too_long_to_start(docker_daemon: Daemon, tmp_path: Path, victim: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path, "--ready-after", "60")
    settings = dataclasses.replace(plan.probes.settings, startup_timeout_s=4)
    plan = hostile(dataclasses.replace(plan, probes=dataclasses.replace(plan.probes, settings=settings)), victim)
    with supervised(plan, tmp_path, max_crashes=1) as owner:
        news = owner.wait_final(40)

    assert news.timed_out
    assert "looked" in Path(news.log).read_text()
    assert (victim / "precious").exists()
    assert not Path(plan.run_dir).exists()
