"""Programs in containers that want to reach the host by the files that they may write, against a real daemon."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import LaunchPlan, Mount
from launcher.supervise.lifecycle import Phase
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


#: says where it may write, and where a program that it has written may be run, then serves
WRITES = """
import os, subprocess, sys
for folder in sys.argv[1].split(":"):
    path = folder + "/program"
    try:
        with open(path, "w") as stream:
            stream.write("#!/bin/sh\\n")
        os.chmod(path, 0o700)
        print(folder, "run" if subprocess.run([path]).returncode == 0 else "written", flush=True)
    except OSError as exc:
        print(folder, exc.strerror, flush=True)
try:
    os.rename(os.getcwd() + "/work", os.getcwd() + "/other")
except OSError as exc:
    print("work", exc.strerror, flush=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("read_only", [True, False])
def test_it_writes_where_the_plan_says_and_nowhere_else(docker_daemon: Daemon, tmp_path: Path, read_only: bool) -> None:
    plan = plan_of(docker_daemon, tmp_path, read_only=read_only)
    work = f"{plan.run_dir}/work"
    assert plan.container is not None
    given = [mount for mount in plan.container.mounts if mount.source != plan.run_dir]
    mounts = (Mount(plan.run_dir, plan.run_dir, read_only=read_only), Mount(work, work, read_only=False), *given)
    folders = ("/", "/usr", plan.run_dir, work, "/tmp", "/dev/shm")
    argv = (PYTHON, "-c", WRITES, ":".join(folders), *plan.argv)
    plan = dataclasses.replace(
        plan, container=dataclasses.replace(plan.container, mounts=mounts), argv=argv, writes=("work",)
    )
    with supervised(plan, tmp_path) as owner:
        lines = Path(owner.wait_ready().log).read_text().splitlines()

    refused = "Read-only file system" if read_only else "run"
    told = dict(line.split(" ", 1) for line in lines)
    assert told == {
        "/": refused,
        "/usr": refused,
        plan.run_dir: refused,
        work: "run",
        "/tmp": "run",
        "/dev/shm": "Permission denied",  # Docker's own has no programs
        "work": "Read-only file system" if read_only else "Device or resource busy",
    }


#: starts processes until it may not, and says whether that was soon
FORKS = """
import os, sys
for number in range(200):
    try:
        if os.fork() == 0:
            os.execv("/bin/sleep", ["sleep", "60"])
    except OSError as exc:
        print(number < 99, exc.strerror, flush=True)
        break
sys.exit(3)
"""


def test_a_container_that_starts_processes_without_end_is_bounded(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path, pids=50)
    with supervised(dataclasses.replace(plan, argv=(PYTHON, "-c", FORKS)), tmp_path, max_crashes=1) as owner:
        news = owner.wait_final(40)

    assert news.tail == ("True Resource temporarily unavailable",)
    assert nothing_left(docker_daemon, plan)
