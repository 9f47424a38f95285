"""Run a program that takes a while: its output is shown as it comes, and its end is kept for the error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from engines.base import Environment

_TAIL = 8
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` with which the kernel kills the child when this process is killed.

    None in any thread but the main one: the signal comes when the *thread* that forked ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def set_up() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return set_up


def search_path(environment: Environment) -> str:
    """Return the PATH to look a program up in: the folder of `environment` first."""
    return f"{environment.bin}:{os.environ.get('PATH', os.defpath)}"


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    stdin: str = "",
    log: TextIO | None = None,
) -> tuple[int, list[str]]:
    """Run `command` to its end; return its exit code and its last lines, of both outputs together.

    `on_line` gets each line that is not empty. An exception in between (a Ctrl-C) ends the program before it goes on.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", preexec_fn=die_with_parent(),
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ended already; its code and last lines tell why
                process.stdin.write(stdin)
                process.stdin.close()
            for line in process.stdout:
                if log is not None:
                    log.write(line)
                if line.strip():
                    tail.append(line.rstrip())
                    on_line(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, list(tail)
