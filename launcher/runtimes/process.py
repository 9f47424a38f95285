"""The engine's program as a subprocess of its supervisor, in a session of its own.

The supervisor makes itself a "subreaper", so that a worker whose parent dies becomes the supervisor's child and is
found, whatever session it moved to. A process that somebody else has adopted is found by a variable that the program's
environment carries and its children inherit.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from engines.base import DeploymentError, LaunchPlan
from launcher import bounded_json, inheritance, trees
from launcher.commands import die_with_parent
from launcher.inheritance import MARKER, SUPERVISOR
from launcher.procfs import boot_id, command, is_alive, is_the_same, name, start_ticks, variable
from launcher.runtimes.base import UNSEEN, Activity, Exit, Handle, Runtime
from launcher.runtimes.keeper import in_memory, read

if TYPE_CHECKING:
    import psutil

_START_WINDOW_S = 60.0

_TEMPORARY = "rml-"

#: the helper of Python's multiprocessing that ends when all its processes have, and then removes their semaphores and
#: shared memory, whose names do not say whose they are; and the seconds that it may take
_TRACKER = b"multiprocessing.resource_tracker"
_TRACKER_S = 3.0

_PR_SET_CHILD_SUBREAPER = 36


class ProcessRuntime(Runtime):
    """The runtime whose program is a child of the supervisor, or was one of a supervisor that was killed."""

    name: ClassVar[str] = "process"

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._exits: dict[int, int] = {}
        self._since = time.time()
        self._oom_kills = 0  #: `oom_kills()` when the program was started
        self._adopted: int | None = None  #: descriptor of the program, if another supervisor has started it

    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:
        """Start the program in a session and with a TMPDIR of its own. Called from the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            # PR_SET_PDEATHSIG fires when the *thread* that forked ends.
            raise RuntimeError("the process runtime starts programs from the main thread only")
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        env = inheritance.of_engine(plan, os.environ)
        self._since = time.time()
        temporary = _make_temporary(plan.run_dir)
        self._exits.clear()  # a pid of the last start may come again
        self._oom_kills = oom_kills()
        self._adopted = None
        with _output(log) as output, in_memory(orders) as kept:
            try:
                process = subprocess.Popen(
                    plan.argv,
                    cwd=plan.run_dir,
                    env={**env, "TMPDIR": temporary, **plan.env, MARKER: plan.run_dir},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=kept,
                    start_new_session=True,
                    preexec_fn=None if kept else die_with_parent(),
                )
            except (OSError, subprocess.SubprocessError) as exc:
                raise DeploymentError(f"{plan.name}: could not start {plan.argv[0]}: {exc}") from exc
        # We wait for children ourselves, adopted ones too; Popen must neither wait nor complain.
        process.returncode = 0
        import psutil  # noqa: F401  (the engine runs by now; no probe and no sweep shall wait for this)

        return Handle(process.pid, start_ticks(process.pid), boot_id())

    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:  # noqa: ARG002
        """Watch a program that is not our child, through a descriptor of its pid."""
        with contextlib.suppress(OSError):
            self._adopted = os.pidfd_open(handle.pid)
        if self._adopted is None or not _is_running(handle):  # looked at last: a pid may be reused
            raise DeploymentError(f"pid {handle.pid} has ended, or is another program by now")
        import psutil

        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._since = psutil.Process(handle.pid).create_time()
        self._oom_kills = oom_kills()

    def end_of(self, handle: Handle) -> int | None:  # noqa: ARG002
        """Return the descriptor of an adopted program; None for a child, whose end a SIGCHLD tells."""
        return self._adopted

    def poll(self, handle: Handle) -> Exit | None:
        """Collect every child that has ended; return how the program ended, `UNSEEN` if it was adopted."""
        self._reap()
        code = self._exits.get(handle.pid)
        if self._adopted is not None and not _is_running(handle):  # nobody's child
            code = UNSEEN
        return None if code is None else Exit(code, oom_kills() > self._oom_kills)

    def listens(self, handle: Handle, port: int) -> bool:
        """Return whether the program, or a descendant of it, has a TCP socket that listens on `port`."""
        import psutil

        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(handle.pid)
            return _listens(leader, port) or any(_listens(worker, port) for worker in _workers(leader))
        return False

    def activity(self, handle: Handle) -> Activity | None:
        """Return the sums over the program and its descendants; None if it has ended."""
        import psutil

        cpu_s, read = 0.0, 0
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(handle.pid)
            for process in (leader, *_workers(leader)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    read += process.io_counters().read_chars
            return Activity(cpu_s, read)
        return None

    def terminate(self, handle: Handle) -> None:
        """Send SIGTERM to the program's process group."""
        # A child of ours keeps its number until we have noticed its end; an adopted one does not.
        if _is_running(handle):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(handle.pid, signal.SIGTERM)

    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:
        """Kill our descendants and the deployment's marked processes, and remove its TMPDIR and leftovers."""
        import psutil  # not at the top: it would keep the engine's first start waiting

        def find() -> Iterator[psutil.Process]:
            # Orphans come to us, so without a child we have no descendant; another's start may have left some that
            # are not ours. Looking through /proc takes 0.1 ms for each process of the machine, and a restart waits.
            if self._reap() or self._adopted is not None:
                yield from _descendants(psutil.Process(), plan.run_dir)
                yield from _marked(plan.run_dir)

        left = _kill_until_gone(find, deadline_s)
        _remove_temporary(plan.run_dir)
        return left + remove_leftovers(plan, self._since)

    def saved_orders(self, handle: Handle) -> bytes | None:
        """Return the orders in the sealed file that the program holds open; None if it has ended, or has none."""
        return read(handle.pid) if _is_running(handle) else None

    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        """Kill the deployment's marked processes, and remove its TMPDIR."""
        left = _kill_until_gone(lambda: _marked(run_dir), deadline_s)
        _remove_temporary(run_dir)
        return left

    def _reap(self) -> bool:
        """Collect every child that has ended, the engine and adopted orphans; return whether any child is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                self._exits[pid] = os.waitstatus_to_exitcode(status)
        return False


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since the machine started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _kill_until_gone(find: Callable[[], Iterable[psutil.Process]], deadline_s: float) -> tuple[str, ...]:
    """Kill what `find` finds until it finds nothing: a process can fork while it is being killed."""
    import psutil

    began = time.monotonic()
    while True:
        alive = [process for process in find() if is_alive(process.pid)]
        spent = time.monotonic() - began
        if not alive or spent > deadline_s:
            return tuple(f"pid {process.pid} ({name(process.pid) or 'gone'})" for process in alive)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                if spent > _TRACKER_S or _TRACKER not in command(process.pid):
                    process.kill()
        time.sleep(0.005)


def remove_leftovers(plan: LaunchPlan, since: float) -> tuple[str, ...]:
    """Remove what an engine left outside its `run_dir`; return the files that could not be removed.

    `since` is when the engine was started (epoch seconds). Folders that match go only if they are empty and were made
    while it started: their names do not say whose they are.
    """
    files: list[Path] = []
    for pattern in plan.leftovers:
        for path in map(Path, glob.glob(pattern)):  # noqa: PTH207  (absolute patterns)
            with contextlib.suppress(OSError):  # gone already, in use, or not ours
                if not path.is_dir():
                    files.append(path)
                    path.unlink()
                elif since - 1 <= path.stat().st_ctime <= since + _START_WINDOW_S:
                    path.rmdir()
    return tuple(str(path) for path in files if path.exists())


def _make_temporary(run_dir: str) -> str:
    """Make the engine's own TMPDIR, which a file beside `run_dir` names, and return it.

    Its path is short, because engines put Unix sockets there, whose paths end at 107 bytes.
    """
    _remove_temporary(run_dir)
    folder = tempfile.mkdtemp(prefix=_TEMPORARY)
    with _temporary(run_dir).open("xb") as note:  # a note that could not be removed is not written through
        note.write(os.fsencode(folder))
    return folder


def _remove_temporary(run_dir: str) -> None:
    note = _temporary(run_dir)
    with contextlib.suppress(OSError, ValueError):  # ValueError: the note is no file, or names none
        folder = Path(os.fsdecode(bounded_json.read_bytes(note)))
        if folder.name.startswith(_TEMPORARY) and folder.lstat().st_uid == os.getuid():
            trees.remove(folder)
    with contextlib.suppress(OSError):
        note.unlink()
    trees.remove(note)  # if the note was a folder


def _temporary(run_dir: str) -> Path:
    """Return the file that names the TMPDIR: not in `run_dir`, where an engine could write another name."""
    return Path(run_dir).with_name("tmp")


def _output(log: Path) -> BinaryIO:
    """Open `log` to append; the null device while its disk is full, as some engines end when they cannot print."""
    stream = log.open("ab", buffering=0)
    size = stream.tell()
    try:
        stream.write(b"\n")
        stream.truncate(size)
    except OSError:
        stream.close()
        return Path(os.devnull).open("wb", buffering=0)
    return stream


def _descendants(process: psutil.Process, run_dir: str) -> Iterator[psutil.Process]:
    """Yield the descendants, without other deployments' and what is below those.

    The gateway is one that has other deployments below it.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in process.children():
            if not _is_anothers(child, run_dir):
                yield child
                yield from _descendants(child, run_dir)


def _is_anothers(process: psutil.Process, run_dir: str) -> bool:
    return variable(process.pid, SUPERVISOR) is not None or variable(process.pid, MARKER) not in (None, run_dir)


def _marked(run_dir: str) -> Iterator[psutil.Process]:
    """Yield every process of the deployment: those that carry its variable, and those that `_is_proved` finds.

    The latter have written over their variables, as programs do that give themselves a name.
    """
    import psutil

    sessions, standing = set(), []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        if _carries(process, run_dir):
            sessions.add(_session(process))
            yield process
        elif _stands_in(process, run_dir):
            standing.append(process)
    for process in standing:
        if _session(process) in sessions - {0} or _is_proved(process, run_dir):
            yield process


def belongs(pid: int, run_dir: str) -> bool:
    """Return whether the process `pid` is of the deployment whose folder is `run_dir`."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return _carries(process, run_dir) or (_stands_in(process, run_dir) and _is_proved(process, run_dir))
    return False


def _carries(process: psutil.Process, run_dir: str) -> bool:
    return variable(process.pid, MARKER) == run_dir


def _stands_in(process: psutil.Process, run_dir: str) -> bool:
    """Return whether the process is in the run folder or below, as the shell of a curious user is too."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.cwd().removesuffix(" (deleted)")).is_relative_to(run_dir)
    return False


def _is_proved(process: psutil.Process, run_dir: str) -> bool:
    """Return whether a process that stands in the run folder comes from its engine.

    It was then started below a process of the deployment, or its output goes to the engine's log.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        if any(_carries(parent, run_dir) for parent in process.parents()):
            return True
    logs = Path(run_dir).with_name("logs")
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/fd/{number}").readlink().parent == logs:
                return True
    return False


def _session(process: psutil.Process) -> int:
    """Return the number of the process's session; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return os.getsid(process.pid)
    return 0


def _listens(process: psutil.Process, port: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
                return True
    return False


def _workers(leader: psutil.Process) -> list[psutil.Process]:
    """Return the descendants of `leader`; one that is just being started or ending may be missing.

    They are read where the kernel lists children. Elsewhere psutil reads all of /proc, which takes longer the more
    processes the machine has.
    """
    import psutil

    if not Path("/proc/thread-self/children").exists():
        return list(leader.children(recursive=True))
    found, workers = [leader.pid], []
    for pid in found:  # the list grows
        for child in _children(pid):
            with contextlib.suppress(psutil.Error):
                workers.append(psutil.Process(child))
                found.append(child)
    return workers


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # threads end
                yield from map(int, (thread / "children").read_text().split())


def _is_running(handle: Handle) -> bool:
    return handle.boot_id == boot_id() and is_the_same(handle.pid, handle.started)
