"""Orders in memory: nobody changes them, and their keeper is ended by its pid and start alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.procfs import is_alive
from launcher.runtimes import keeper


def test_what_is_kept_is_read_from_its_keeper_and_from_nobody_else(tmp_path: Path) -> None:
    pid, started = keeper.start(str(tmp_path), b"orders")
    try:
        assert keeper.read(pid) == b"orders"
        assert keeper.read(os.getpid()) is None
    finally:
        keeper.end(pid, started)
    assert keeper.read(pid) is None


def test_what_is_kept_cannot_be_changed(tmp_path: Path) -> None:
    with keeper.in_memory(b"orders") as (descriptor,), pytest.raises(PermissionError):
        os.pwrite(descriptor, b"forged", 0)
    pid, started = keeper.start(str(tmp_path), b"orders")
    try:
        (file,) = [one for one in Path(f"/proc/{pid}/fd").iterdir() if str(one.readlink()).startswith("/memfd:")]
        with pytest.raises(PermissionError):
            file.write_bytes(b"forged")
        with pytest.raises(PermissionError):
            os.truncate(file, 0)
        assert keeper.read(pid) == b"orders"
    finally:
        keeper.end(pid, started)


def test_a_file_that_only_bears_the_name_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    """A container sees other paths: its pipe /memfd:rmlaunch reads as if it were a file in memory."""
    fifo = tmp_path / "memfd:rmlaunch"
    os.mkfifo(fifo)
    script = (
        f"import os, time; os.chroot({str(tmp_path)!r}); os.open('/memfd:rmlaunch', os.O_RDWR)"
        "; print('open', flush=True); time.sleep(60)"
    )
    if os.geteuid() != 0:
        pytest.skip("not run here: chroot takes root")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            assert keeper.read(process.pid) is None
        finally:
            process.kill()


def test_only_what_a_process_was_given_is_looked_at() -> None:
    script = "import os; [os.dup(0) for _ in range(1010)]; print(os.memfd_create('rmlaunch', 0), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            file = Path(f"/proc/{process.pid}/fd") / process.stdout.readline().decode().strip()
            assert str(file.readlink()).startswith("/memfd:rmlaunch")
            assert keeper.read(process.pid) is None
        finally:
            process.kill()


def test_another_process_with_its_pid_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        keeper.end(other.pid, 1)
        assert is_alive(other.pid)
        other.kill()


def test_only_keepers_of_that_folder_are_ended(tmp_path: Path) -> None:
    ours, theirs = (keeper.start(str(tmp_path / name), b"orders") for name in ("ours", "theirs"))
    try:
        keeper.end_all(str(tmp_path / "ours"))
        assert not is_alive(ours[0])
        assert is_alive(theirs[0])
    finally:
        keeper.end(*theirs)
        keeper.end(*ours)
