"""What an engine's program inherits from us, and what is left of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from engines.base import LaunchPlan
from launcher.runtimes.process import ProcessRuntime, _workers
from launcher.runtimes.procfs import is_alive
from tests.supervision import fake_plan, wait_for


def variables(plan: LaunchPlan, log: Path) -> set[str]:
    """The names of the variables that a program started with `plan` has, as the kernel tells them."""
    plan = dataclasses.replace(plan, argv=(sys.executable, "-c", "print('END', flush=True); input()"))
    Path(plan.run_dir).mkdir(parents=True, exist_ok=True)
    runtime = ProcessRuntime()
    handle = runtime.start(plan, log)
    found = Path(f"/proc/{handle.pid}/environ").read_bytes()
    runtime.sweep(plan)
    return {pair.partition(b"=")[0].decode() for pair in found.split(b"\0") if pair}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "RBLN_DEVICES", "RBLN_LOG", "PYTHONDONTWRITEBYTECODE", "MINE", "MY_SECRET_KEY"):
        monkeypatch.setenv(name, "1")


def test_an_engine_has_what_engines_need_and_nothing_else_of_ours(tmp_path: Path) -> None:
    seen = variables(fake_plan(tmp_path), tmp_path / "log")

    assert {"PATH", "RBLN_LOG", "TMPDIR", "RMLAUNCH_DEPLOYMENT"} <= seen
    assert not {"PYTHONPATH", "RBLN_DEVICES", "MINE", "MY_SECRET_KEY"} & seen


def test_an_engine_has_what_its_plan_names(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path), inherit=("MY_*",), env={"SET": "1"})

    seen = variables(plan, tmp_path / "log")

    assert {"MY_SECRET_KEY", "SET"} <= seen
    assert "MINE" not in seen


@pytest.mark.parametrize(("managed", "inherited"), [(True, False), (False, True)])
def test_byte_code_is_kept_in_our_environments_whatever_the_user_likes(
    tmp_path: Path, managed: bool, inherited: bool
) -> None:
    plan = fake_plan(tmp_path)
    plan = dataclasses.replace(plan, environment=dataclasses.replace(plan.environment, managed=managed))

    assert ("PYTHONDONTWRITEBYTECODE" in variables(plan, tmp_path / "log")) is inherited


SHARES_MEMORY = """
    import multiprocessing, os, time
    from multiprocessing.shared_memory import SharedMemory
    lock = multiprocessing.get_context("spawn").Lock()
    memory = SharedMemory(create=True, size=100)
    # glibc gives a semaphore its name after it was mapped, so that the map has another one.
    inodes = {line.split()[4] for line in open("/proc/self/maps") if "/dev/shm/" in line}
    print(*(entry.name for entry in os.scandir("/dev/shm") if str(entry.inode()) in inodes), "END", flush=True)
    time.sleep(60)
"""


def test_shared_memory_of_a_killed_python_is_removed(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path), argv=(sys.executable, "-c", textwrap.dedent(SHARES_MEMORY)))
    Path(plan.run_dir).mkdir(parents=True)
    log, runtime = tmp_path / "log", ProcessRuntime()
    handle = runtime.start(plan, log)
    wait_for(lambda: "END" in log.read_text())
    *names, _ = log.read_text().split()
    shared = [Path("/dev/shm") / name for name in names]
    assert len(shared) == 2
    assert all(path.exists() for path in shared)

    os.kill(handle.pid, signal.SIGKILL)
    left = runtime.sweep(plan)

    assert left == ()
    assert not any(path.exists() for path in shared)


def test_a_worker_that_wrote_over_its_variables_is_known_by_where_it_stands(tmp_path: Path) -> None:
    """As programs do that give themselves a name."""
    script = (
        "import subprocess; print(subprocess.Popen(['sleep', '60'], env={}, start_new_session=True).pid, flush=True)"
    )
    plan = dataclasses.replace(
        fake_plan(tmp_path), argv=(sys.executable, "-c", f"{script}; import time; time.sleep(60)")
    )
    Path(plan.run_dir).mkdir(parents=True)
    log, runtime = tmp_path / "log", ProcessRuntime()
    handle = runtime.start(plan, log)
    wait_for(lambda: log.read_text().endswith("\n"))
    worker = int(log.read_text())

    assert ProcessRuntime().clear(plan.run_dir, {}) == ()

    assert not is_alive(handle.pid)
    assert not is_alive(worker)
    runtime.sweep(plan)


def test_a_file_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "mine-1"
    left.touch()
    plan = fake_plan(tmp_path, leftovers=(f"{tmp_path}/mine-*",))
    Path(plan.run_dir).mkdir(parents=True)
    runtime = ProcessRuntime()

    def refused(path: Path, missing_ok: bool = False) -> None:  # noqa: ARG001
        raise PermissionError(f"{path}: read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        assert runtime.sweep(plan) == (str(left),)
    assert runtime.sweep(plan) == ()
    assert not left.exists()


def test_workers_are_found_whichever_thread_started_them() -> None:
    script = (
        "import subprocess, threading, time\n"
        "threading.Thread(target=subprocess.run, args=(['sh', '-c', 'sleep 60 & wait'],)).start()\n"
        "subprocess.run(['sleep', '60'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as process:
        try:
            leader = psutil.Process(process.pid)
            wait_for(lambda: len(leader.children(recursive=True)) == 3)

            assert {worker.pid for worker in _workers(leader)} == {item.pid for item in leader.children(recursive=True)}
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_link_in_its_folder_is_not_taken_for_its_temporary_one(tmp_path: Path) -> None:
    victim = tmp_path / "rml-victim"
    victim.mkdir()
    script = f"import os, tempfile; os.symlink({str(victim)!r}, 'tmp'); print(tempfile.gettempdir(), flush=True)"
    plan = dataclasses.replace(fake_plan(tmp_path), argv=(sys.executable, "-c", script))
    Path(plan.run_dir).mkdir(parents=True)
    log, runtime = tmp_path / "log", ProcessRuntime()
    runtime.start(plan, log)
    wait_for(lambda: log.read_text().endswith("\n"))
    temporary = Path(log.read_text().strip())
    assert temporary.exists()

    assert runtime.sweep(plan) == ()

    assert victim.exists()
    assert not temporary.exists()


def test_only_a_folder_of_ours_is_removed_as_the_temporary_one(tmp_path: Path) -> None:
    note = tmp_path / "tmp"
    victim = tmp_path / "victim"
    victim.mkdir()
    link = tmp_path / "rml-link"
    link.symlink_to(victim)
    for named in (victim, link):
        note.write_text(str(named))
        assert ProcessRuntime().clear(str(tmp_path / "run"), {}) == ()
        assert victim.exists()


def test_the_temporary_folder_of_what_nobody_supervises_is_removed(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path), argv=(sys.executable, "-c", "import time; time.sleep(60)"))
    Path(plan.run_dir).mkdir(parents=True)
    handle = ProcessRuntime().start(plan, tmp_path / "log")
    temporary = Path(Path(plan.run_dir).with_name("tmp").read_text())
    assert temporary.exists()

    assert ProcessRuntime().clear(plan.run_dir, {}) == ()

    assert not temporary.exists()
    assert not is_alive(handle.pid)
