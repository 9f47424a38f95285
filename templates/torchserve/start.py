"""Start TorchServe's Java frontend and stop it as a supervisor expects; the launcher renders this file.

    python -I -S start.py GRACE_S JAVA ARGUMENT...

Asked to end, the frontend drops every open connection at once and then takes two to five seconds. So it gets a session
of its own, which a signal to our process group does not reach, and is killed when its workers have been idle for a
moment; they end when it is gone. All of it takes at most GRACE_S. The JVM does not read TMPDIR either, and the sockets
of all TorchServes would meet in /tmp.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
POLL_S = 0.02
IDLE_S = 0.3  # longer than a worker is away between two parts of a stream (turns.py)
WORKERS_END_S = 3.0  # the part of the grace that is kept for the end of the workers

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(grace_s: float, command: list[str]) -> int:
    """Run the frontend until it ends or we are asked to end it; return the exit code."""
    temporary = Path(os.environ["TMPDIR"])
    os.chdir(Path(__file__).parent / "work")  # the one folder beside it that may be written to
    os.umask(0o077)  # key_file.json is written first and protected afterwards
    Path("key_file.json").unlink(missing_ok=True)  # the last start's: its keys are not valid any more
    busy = temporary / "busy"
    busy.touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    family = Family([command[0], f"-Djava.io.tmpdir={temporary}", *command[1:]])
    while family.code is None:
        if signal.sigwait(SIGNALS) != signal.SIGCHLD:
            deadline = time.monotonic() + grace_s
            _drain(family, busy, deadline - WORKERS_END_S)
            family.end(deadline)
            return 0
        family.reap()
    return _ended_by_itself(family.code, temporary / "failed")


class Family:
    """The frontend and its descendants: when a parent is gone, its children become ours."""

    def __init__(self, command: list[str]) -> None:
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.code: int | None = None  #: exit code of the frontend; None while it runs
        java = subprocess.Popen(command, start_new_session=True, preexec_fn=_child_setup(prctl))
        java.returncode = 0  # we wait ourselves
        self._java = java.pid

    def reap(self) -> bool:
        """Collect ended processes; return whether anybody is left."""
        try:
            while ended := os.waitpid(-1, os.WNOHANG):
                if ended[0] == 0:
                    return True
                if ended[0] == self._java:
                    self.code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            pass
        return False

    def end(self, deadline: float) -> None:
        """Kill the frontend; its workers see the end of their sockets, and clean up after themselves."""
        if self.code is None:
            os.kill(self._java, signal.SIGKILL)
        while self.reap():
            if time.monotonic() > deadline:
                os.killpg(self._java, signal.SIGKILL)
                return
            time.sleep(POLL_S)


def _child_setup(prctl: Callable[..., int]) -> Callable[[], None]:
    """Return the function for the child to call before it becomes Java: it dies with us, and takes signals again."""

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    return prepare


def _drain(family: Family, busy: Path, deadline: float) -> None:
    """Wait until no worker answers a request: while it does, a worker holds a lock on `busy`; then it touches it."""
    with busy.open("a") as file:
        while family.code is None and time.monotonic() < deadline:
            if time.time() - os.fstat(file.fileno()).st_mtime > IDLE_S and _is_free(file.fileno()):
                return
            time.sleep(POLL_S)
            family.reap()


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _ended_by_itself(code: int, failed: Path) -> int:
    if failed.exists():  # a worker could not load the model, and killed the frontend (torchserve_worker.py)
        print(failed.read_text(), file=sys.stderr)
        return 1
    if code < 0:  # so that our supervisor sees what the signal was
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
