"""One deployment that faults are aimed at: started by a command of its own, watched through its socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from engines.base import DeploymentError, LaunchPlan
from launcher import dataclass_json
from launcher.deployments.connection import Connection, NoAnswerError
from launcher.supervise.control_socket import connect
from launcher.supervise.lifecycle import Phase
from launcher.supervise.probes import Door, check
from launcher.supervise.protocol import News
from tests.faults import traces
from tests.faults.columns import Column
from tests.makers import makers
from tests.supervision import free_port

_SUPERVISE = (
    "supervise.liveness_period_s=1",
    "supervise.liveness_timeout_s=2",
    "supervise.liveness_failures=2",
    "supervise.stop_grace_s=1",
    "supervise.stable_s=1",
    "supervise.backoff_s=0.05",
    "supervise.backoff_max_s=0.1",
)
_COMMAND_S = 120.0


class Witness:
    """Hears what the supervisor says from now on, and notes when."""

    def __init__(self, folder: Path) -> None:
        self._heard: list[tuple[float, News]] = []
        self._changed = threading.Condition()
        self._socket = connect(folder, 5.0)
        self._socket.settimeout(None)
        self._socket.sendall(b'{"op": "follow"}\n')
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Witness:
        self.wait(lambda _: True, 5.0)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(2)
        self._thread.join(5)
        self._socket.close()

    def wait(self, condition: Callable[[News], bool], timeout_s: float) -> tuple[float, News]:
        """When it said first what `condition` waits for (monotonic), and what that was."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (found := [(at, news) for at, news in self._heard if condition(news)]):
                left = deadline - time.monotonic()
                said = [f"{news.phase.value} {news.reason}".strip() for _, news in self._heard]
                assert left > 0, f"not said within {timeout_s:g} s; it said: {said}"
                self._changed.wait(left)
        return found[0]

    def wait_ready(self, timeout_s: float, starts: int = 1) -> float:
        """When it was READY in its start number `starts` or a later one."""
        at, news = self.wait(
            lambda news: (news.phase is Phase.READY and news.starts >= starts) or news.phase.final, timeout_s
        )
        assert news.phase is Phase.READY, news.reason
        return at

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                with self._changed:
                    self._heard.append((time.monotonic(), News.read(line, "it")))
                    self._changed.notify_all()


class Deployment:
    """Of `column`'s engine, called `name`. `temporary` becomes the folder that engines make theirs in."""

    def __init__(self, column: Column, name: str, state: Path, temporary: Path, env: Mapping[str, str]) -> None:
        self.column = column
        self.name = name
        self.state = state
        self.folder = state / "deployments" / name
        self.run_dir = self.folder / "run"
        self._temporary = temporary
        makers()  # from now on
        self._env = {
            **os.environ,
            **env,
            "RMLAUNCH_STATE": str(state),
            "TMPDIR": str(temporary),
            "XDG_CONFIG_HOME": str(temporary.parent / "config"),
        }
        if column.real:  # the environments of real engines take minutes to make
            self._env.pop("RMLAUNCH_CACHE", None)

    # --------------------------------------------------------------------------------------------------- commands

    def start(
        self,
        *options: str,
        detached: bool,
        port: int | None = None,
        max_crashes: int = 3,
        more: Sequence[str] = (),
    ) -> Started:
        """The command that starts it, running; with `detached` it ends when the engine is ready.

        `options` are for the fake alone; `more` is for whichever engine it is.
        """
        if self.column.real:
            words = ["launcher", *(("up", "-d") if detached else ())]
            words += [f"engine={self.column.engine}", "device=cpu", "model=smollm2", f"name={self.name}"]
            words += self.column.words
            # A port that nobody else looks for: another launcher may be choosing from 8000 up at this moment.
            words += [*_SUPERVISE, f"supervise.max_crashes={max_crashes}", f"port={port or free_port()}"]
        else:
            words = ["tests.faults.fake", *(("-d",) if detached else ()), f"--name={self.name}"]
            words += [f"--max-crashes={max_crashes}", *([f"--port={port}"] if port else []), "--worker", *options]
        return Started(self._popen(*words, *more))

    def rmlaunch(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self._popen("launcher", *words)
        out, errors = process.communicate(timeout=_COMMAND_S)
        assert "\nTraceback" not in f"\n{errors}", errors  # an engine's is quoted, with a margin
        return subprocess.CompletedProcess(words, process.returncode, out, errors)

    def _popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # ---------------------------------------------------------------------------------------------------- looking

    def listed(self) -> News | None:
        """As the supervisor says it; None where there is none."""
        try:
            with Connection(self.folder) as connection:
                return connection.status()
        except NoAnswerError:
            raise
        except (OSError, DeploymentError):  # nobody listens, or it ended while it was asked
            return None

    def connection(self) -> Connection:
        return Connection(self.folder)

    def news(self) -> News:
        news = self.listed()
        assert news is not None, f"{self.name} has no supervisor"
        return news

    def witness(self) -> Witness:
        return Witness(self.folder)

    def starting(self, starts: int = 1, timeout_s: float = 30.0) -> int:
        """The pid of the engine in its start number `starts`, as soon as it has one."""
        deadline = time.monotonic() + timeout_s
        while True:
            news = self.listed()
            if news and news.starts >= starts and news.pid:
                return news.pid
            assert time.monotonic() < deadline, "the engine was not started"
            time.sleep(0.005)

    def plan(self) -> LaunchPlan:
        with Connection(self.folder) as connection:
            return dataclass_json.load(LaunchPlan, connection.ask("target")["plan"])

    def ports(self) -> list[int]:
        ports: list[int] = json.loads((self.folder / "plan.json").read_text())["ports"]
        return ports

    def processes(self) -> dict[traces.Process, str]:
        return traces.processes(self.run_dir)

    def leader(self) -> int:
        """The pid of the process that listens."""
        wanted = self.column.leader
        if wanted is None:
            pid = self.news().pid
        else:
            pid = self._running(lambda command: Path(command.split()[0]).name == wanted)
        assert pid is not None, f"{self.name} has no leader"
        return pid

    def worker(self) -> int | None:
        """The pid of the process that computes; None while there is none."""
        wanted = self.column.worker
        assert wanted is not None
        return self._running(lambda command: wanted in command)

    def _running(self, is_meant: Callable[[str], bool]) -> int | None:
        return next((pid for (pid, _), command in self.processes().items() if is_meant(command)), None)

    def processor_s(self, pid: int) -> float:
        """The processor time that the engine has used, its workers included."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(pid)
            for process in (leader, *leader.children(recursive=True)):
                total += sum(process.cpu_times()[:2])
        return total

    def is_answering(self, timeout_s: float = 5.0) -> bool:
        plan = self.plan()
        return check(Door(plan.endpoints.http, None, plan.key), plan.probes.readiness, timeout_s) is None

    def prove_it_answers(self) -> None:
        if self.column.real:
            done = self.rmlaunch("infer", self.name, "The capital of France is", "max_tokens=4")
            assert "Paris" in done.stdout, done.stderr
        else:
            assert self.is_answering()

    # --------------------------------------------------------------------------------------------------- leftovers

    def remains(self, old: dict[traces.Process, str]) -> list[str]:
        """What is left of an earlier start of an engine that serves again."""
        folders = [str(folder) for folder in self._temporary.iterdir()]
        return [f"pid {old[key]}" for key in old if traces.alive(key)] + folders[1:]

    def leftovers(self, ports: list[int]) -> list[str]:
        """What is left of a deployment that has ended."""
        found = [f"pid {pid} ({command})" for (pid, _), command in self.processes().items()]
        found += traces.taken(ports)
        found += [str(folder) for folder in self._temporary.iterdir()]
        found += makers().left_by(self.run_dir)
        return found + ([str(self.run_dir)] if self.run_dir.exists() else [])

    def wait_gone(self, timeout_s: float) -> float:
        """Seconds until no process of it is left, at most `timeout_s`."""
        began = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - began < timeout_s, f"still there after {timeout_s:g} s: {list(left.values())}"
            time.sleep(0.01)
        return time.monotonic() - began

    def end(self) -> None:
        """Whatever state a failed test has left it in."""
        with contextlib.suppress(OSError), Connection(self.folder) as connection:
            for _ in connection.follow(time.monotonic() + 20, "kill"):
                pass
        for pid, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_gone(10)


class Started:
    """A command that runs beside the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def finish(self, timeout_s: float) -> tuple[int, str]:
        """Its exit code and what it said on stderr."""
        _, errors = self.process.communicate(timeout=timeout_s)
        assert "\nTraceback" not in f"\n{errors}", errors  # an engine's is quoted, with a margin
        return self.process.returncode, errors

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


@contextlib.contextmanager
def running(deployment: Deployment, *options: str, **settings: object) -> Iterator[Started]:
    """One in the foreground, READY, that is gone after the block whatever happens in it."""
    started = deployment.start(*options, detached=False, **settings)  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.kill()
        deployment.end()
