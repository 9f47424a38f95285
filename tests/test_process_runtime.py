"""What an engine's program inherits from us, and what is left of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from engines.base import DeploymentError, LaunchPlan
from launcher.procfs import boot_id, is_alive, start_ticks
from launcher.runtimes.base import Handle
from launcher.runtimes.process import ProcessRuntime, _make_temporary, _workers, belongs
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


#: starts a worker without variables, as programs are that have given themselves a name, and says its pid
WORKER = """
    import os, subprocess, sys, time
    worker = subprocess.Popen(["sleep", "60"], env={{}}, start_new_session={own_session})
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def with_a_worker(state: Path, *, own_session: bool) -> tuple[LaunchPlan, int, int]:
    """A plan, the pid of its program, and the pid of that one's worker."""
    script = textwrap.dedent(WORKER.format(own_session=own_session))
    plan = dataclasses.replace(fake_plan(state), argv=(sys.executable, "-c", script))
    Path(plan.run_dir).mkdir(parents=True)
    log = Path(plan.run_dir).with_name("logs") / "000001.log"
    log.parent.mkdir()
    handle = ProcessRuntime().start(plan, log)
    wait_for(lambda: log.read_text().endswith("\n"))
    return plan, handle.pid, int(log.read_text())


@pytest.mark.parametrize("own_session", [True, False])
@pytest.mark.parametrize("orphaned", [True, False])
def test_a_worker_that_wrote_over_its_variables_is_known_by_where_it_stands_and_comes_from(
    tmp_path: Path, own_session: bool, orphaned: bool
) -> None:
    plan, program, worker = with_a_worker(tmp_path, own_session=own_session)
    if orphaned:
        os.kill(program, signal.SIGKILL)
        wait_for(lambda: not is_alive(program))
    assert belongs(worker, plan.run_dir)

    assert ProcessRuntime().clear(plan.run_dir, {}) == ()

    assert not is_alive(program)
    assert not is_alive(worker)


@pytest.mark.parametrize("variables", [{}, None])
def test_a_bystander_in_the_run_folder_is_left_alone(tmp_path: Path, variables: dict[str, str] | None) -> None:
    plan, program, worker = with_a_worker(tmp_path, own_session=True)
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], cwd=plan.run_dir, env=variables
    ) as bystander:
        try:
            assert not belongs(bystander.pid, plan.run_dir)
            assert ProcessRuntime().clear(plan.run_dir, {}) == ()

            assert not is_alive(program)
            assert not is_alive(worker)
            assert is_alive(bystander.pid)
        finally:
            bystander.kill()


def test_only_the_program_itself_is_asked_to_end_and_adopted() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        try:
            handle = Handle(other.pid, start_ticks(other.pid) - 1, boot_id())
            ProcessRuntime().terminate(handle)
            assert ProcessRuntime().saved_orders(handle) is None
            with pytest.raises(DeploymentError, match="is another program by now"):
                ProcessRuntime().adopt(handle, fake_plan(Path("/nowhere")), Path("/nowhere"))
            assert other.poll() is None
            ProcessRuntime().terminate(Handle(other.pid, start_ticks(other.pid), boot_id()))
            assert other.wait(10) == -signal.SIGTERM
        finally:
            other.kill()


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


@pytest.mark.parametrize("harm", ["nul", "binary", "empty", "fifo", "link", "endless", "huge", "socket", "folder"])
def test_a_note_of_the_temporary_folder_that_is_none_is_removed_and_replaced(tmp_path: Path, harm: str) -> None:
    note, victim = tmp_path / "tmp", tmp_path / "victim"
    victim.write_text("precious")
    texts = {"nul": b"/tmp/rml-\0x", "binary": b"/tmp/rml-\xff", "empty": b"", "huge": b"x"}
    if harm in texts:
        note.write_bytes(texts[harm])
    if harm == "fifo":
        os.mkfifo(note)
    if harm == "folder":
        (note / "inner").mkdir(parents=True)
    if harm in ("link", "endless"):
        note.symlink_to(victim if harm == "link" else "/dev/zero")
    if harm == "huge":
        os.truncate(note, 100 << 20)
    with socket.socket(socket.AF_UNIX) as bound:
        if harm == "socket":
            bound.bind(str(note))

    assert ProcessRuntime().clear(str(tmp_path / "run"), {}) == ()
    assert not note.is_symlink()
    assert not note.exists()

    folder = Path(_make_temporary(str(tmp_path / "run")))
    assert note.read_text() == str(folder)
    assert ProcessRuntime().clear(str(tmp_path / "run"), {}) == ()
    assert not folder.exists()
    assert victim.read_text() == "precious"


def test_the_temporary_folder_of_what_nobody_supervises_is_removed(tmp_path: Path) -> None:
    plan = dataclasses.replace(fake_plan(tmp_path), argv=(sys.executable, "-c", "import time; time.sleep(60)"))
    Path(plan.run_dir).mkdir(parents=True)
    handle = ProcessRuntime().start(plan, tmp_path / "log")
    temporary = Path(Path(plan.run_dir).with_name("tmp").read_text())
    assert temporary.exists()

    assert ProcessRuntime().clear(plan.run_dir, {}) == ()

    assert not temporary.exists()
    assert not is_alive(handle.pid)
