"""What a process says of itself, which it may have written as it likes: others are not felled by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.atomic import remove_partials
from launcher.runtimes.process import ProcessRuntime, belongs
from launcher.runtimes.procfs import is_alive, is_the_same, name, start_ticks

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


def test_one_whose_name_is_no_text_is_ended_like_any_other(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    with running(RENAMED, RMLAUNCH_DEPLOYMENT=run_dir) as process:
        assert belongs(process.pid, run_dir)
        assert ProcessRuntime().clear(run_dir, {}) == ()
        assert process.wait(10) == -9
