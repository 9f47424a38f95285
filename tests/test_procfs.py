"""What a process says of itself, which it may have written as it likes: others are not felled by it."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from launcher.atomic import remove_partials
from launcher.procfs import command, is_alive, is_the_same, name, start_ticks, variable
from launcher.runtimes import keeper
from launcher.runtimes.process import ProcessRuntime, _is_anothers, belongs

#: gives itself a name that ends in half a character, as the kernel's cut after 15 bytes does
RENAMED = r"import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z \xff caf\xc3', 0, 0, 0)"


@contextmanager
def running(script: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has done `script` and waits."""
    command = [sys.executable, "-c", f"{script}\nprint('done', flush=True)\ninput()"]
    env = {**os.environ, **variables}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            yield process
        finally:
            process.kill()


def test_a_name_that_is_no_text_hides_nothing_of_its_process() -> None:
    with running(RENAMED) as process:
        assert is_alive(process.pid)
        assert is_the_same(process.pid, start_ticks(process.pid))
        assert name(process.pid) == "a) Z \ufffd caf\ufffd"
    assert not is_alive(process.pid)
    assert name(process.pid) == ""


def test_a_writer_whose_name_is_no_text_goes_on(tmp_path: Path) -> None:
    with running(RENAMED) as process:
        partial = tmp_path / f".plan.json.{process.pid}-{start_ticks(process.pid)}"
        partial.touch()
        remove_partials(tmp_path)
        assert partial.exists()
    remove_partials(tmp_path)
    assert not partial.exists()


#: has 256 MiB of variables and words, of its own making
GROWN = """
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
room = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
room[: 4 << 20] = b"GROWN=".ljust(4 << 20, b"x")
begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
now = [int(field) for field in open("/proc/self/stat").read().rpartition(")")[2].split()[1:]]
code, stack, data = now[22:24], now[24], now[41:43]
here = [begin, begin + len(room)]
fields = struct.pack("<11QQIi", *code, *data, now[43], libc.sbrk(0), stack, *here, *here, 0, 0, -1)
if libc.prctl(35, 14, ctypes.c_char_p(fields), len(fields), 0):  # PR_SET_MM, PR_SET_MM_MAP
    raise OSError(ctypes.get_errno(), "prctl")
"""


def test_of_variables_and_words_without_end_only_the_beginning_is_read(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    with running(GROWN) as process:
        with Path(f"/proc/{process.pid}/environ").open("rb") as stream:
            assert stream.read(6) == b"GROWN="
        tracemalloc.start()
        try:
            assert not belongs(process.pid, run_dir)
            assert variable(process.pid, "GROWN") is None
            keeper.end_all(run_dir)
            assert ProcessRuntime().clear(run_dir, {}) == ()
            assert not _is_anothers(psutil.Process(process.pid), run_dir)
            assert len(command(process.pid)) < 4 << 20
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()
        assert is_alive(process.pid)


def test_a_variable_is_what_its_process_was_started_with(tmp_path: Path) -> None:
    with running("", MINE=f"{tmp_path}=\udcff", EMPTY="") as process:
        assert variable(process.pid, "MINE") == f"{tmp_path}=\udcff"
        assert variable(process.pid, "EMPTY") == ""
        assert variable(process.pid, "INE") is None
        assert command(process.pid).startswith(os.fsencode(sys.executable) + b"\0-c\0")
    assert variable(process.pid, "MINE") is None


def test_one_whose_name_is_no_text_is_ended_like_any_other(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    with running(RENAMED, RMLAUNCH_DEPLOYMENT=run_dir) as process:
        assert belongs(process.pid, run_dir)
        assert ProcessRuntime().clear(run_dir, {}) == ()
        assert process.wait(10) == -9
