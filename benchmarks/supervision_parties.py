"""The same program under three supervisors: rmlaunch, supervisord and circus.

The program is a shell script that first writes down its pid and the time, and then becomes the misbehaving server of
the tests. Each party's folder is in the environment of everything that it starts, so that nothing is missed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from engines.base import Device, Endpoint, Endpoints, Environment, HttpCheck, LaunchPlan, Model, Probes, ProbeSettings
from launcher import plan_json
from launcher.config.compose import compose
from launcher.config.schema import EnvironmentConf, SuperviseConf
from launcher.deployments.ledger import Claim, Ledger
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.paths import cache_root
from launcher.planning.environments import describe
from launcher.prepare.environments import ensure
from launcher.prepare.steps import render_files
from launcher.progress import Progress
from launcher.serving.hand_over import orders_for
from launcher.supervise.lifecycle import Phase
from tests.supervision import FAKE, free_port, is_alive

PEERS = EnvironmentConf(["supervisor==4.3.0", "circus==0.19.0", "psutil==7.2.2", "pyzmq==27.3.0", "tornado==6.6.1"])
START_TIMEOUT_S = 30.0

_MARK = "RMLAUNCH_BENCHMARK"
_PROGRAM = """#!/bin/sh
echo "$$ $(date +%s%N)" >> {folder}/starts
exec {python} {fake} --port {port} {options}
"""
# What they need to stop all that they can reach, and circus to look each second and not each fifth; the rest is as it
# comes.
_SUPERVISORD = """
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
[unix_http_server]
file = {folder}/supervisord.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:server]
command = {program}
stdout_logfile = {folder}/server.log
redirect_stderr = true
stopasgroup = true
killasgroup = true
"""
_CIRCUS = """
[circus]
check_delay = 1
endpoint = ipc://{folder}/circus.sock
pubsub_endpoint = ipc://{folder}/circus-events.sock
[watcher:server]
cmd = {program}
copy_env = true
stop_children = true
"""


class Party(ABC):
    """One supervisor with one program; the block's end leaves nothing of it."""

    name: str

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.program = write_program(folder, self.port, *options)

    def __enter__(self) -> Party:
        os.environ[_MARK] = str(self.folder)
        self._start()
        self.wait_ready(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_marked(self.folder)
        self._forget()

    @property
    @abstractmethod
    def supervisor(self) -> int:
        """Its pid."""

    @abstractmethod
    def _start(self) -> None:
        """Start the supervisor, and let it start the program."""

    @abstractmethod
    def _forget(self) -> None:
        """Collect what was killed."""

    def kill(self) -> None:
        os.kill(self.supervisor, signal.SIGKILL)

    def stop(self) -> None:
        """Politely; returns when the supervisor has ended."""
        pid = self.supervisor
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not is_alive(pid), f"{self.name} did not end")

    def starts(self) -> list[tuple[int, int]]:
        """The pid of each start of the program, and when it was (epoch nanoseconds)."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "starts").read_text().splitlines(keepends=True)
            whole = [line.split() for line in lines if line.endswith("\n")]
            return [(int(pid), int(when)) for pid, when in whole]
        return []

    def wait_ready(self, starts: int) -> None:
        """Until the program was started `starts` times and answers."""
        wait_for(
            lambda: len(self.starts()) >= starts and self._answers(), f"{self.name}: start {starts} does not serve"
        )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
            return True
        return False


class Ours(Party):
    name = "rmlaunch"

    def __init__(self, folder: Path, stable_s: float | None = None) -> None:
        super().__init__(folder)
        self._stable_s = stable_s

    @property
    def supervisor(self) -> int:
        assert self._owner.news.supervisor is not None
        return self._owner.news.supervisor

    def _start(self) -> None:
        self._owner = deploy("server", self.program, self.port, self.folder, stable_s=self._stable_s)
        self._owner.wait_ready()

    def wait_ready(self, starts: int) -> None:
        """And the crashes of before are forgotten, so that the next restart is a first one again."""
        super().wait_ready(starts)
        wait_for(lambda: (self._owner.news.phase, self._owner.news.crashes) == (Phase.READY, 0), "it is not stable")

    def _forget(self) -> None:
        self._owner.close()


class Foreground(Party):
    """Ours, with the process that started it."""

    name = "rmlaunch, its supervisor"

    @property
    def supervisor(self) -> int:
        pid: int = self._state()["supervisor"]
        return pid

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.program, str(self.port), self.folder]  # that is `_own`
        )

    def wait_ready(self, starts: int) -> None:
        super().wait_ready(starts)
        wait_for(lambda: self._state().get("state") == "READY", f"{self.name}: it is not ready")

    def _state(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):  # written a moment after the program's start
            state: dict[str, Any] = json.loads((self.folder / "deployments/server/state.json").read_text())
            return state
        return {}

    def _forget(self) -> None:
        self._process.wait(10)


class Owner(Foreground):
    """A party that is ended by the process that started its supervisor, not by the supervisor."""

    name = "rmlaunch, its foreground process"

    @property
    def supervisor(self) -> int:
        return self._process.pid


class Supervisord(Party):
    name = "supervisord"

    @property
    def supervisor(self) -> int:
        return self._process.pid

    def _start(self) -> None:
        self._run(_SUPERVISORD, "supervisord", "-c")

    def _run(self, config: str, command: str, *options: str) -> None:
        file = self.folder / "peer.ini"
        file.write_text(config.format(folder=self.folder, program=self.program))
        with (self.folder / "peer.log").open("ab") as output:
            self._process = subprocess.Popen(
                [_environment() / "bin" / command, *options, file],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def _forget(self) -> None:
        self._process.wait(10)


class Circus(Supervisord):
    name = "circus"

    def _start(self) -> None:
        self._run(_CIRCUS, "circusd")


def write_program(folder: Path, port: int, *options: str) -> Path:
    """Write the program that is supervised and return its path; its starts are written to `folder`."""
    program = folder / "program"
    program.write_text(
        _PROGRAM.format(folder=folder, python=sys.executable, fake=FAKE, port=port, options=" ".join(options))
    )
    program.chmod(0o755)
    return program


def deploy(
    name: str, program: Path, port: int, state: Path, *, detached: bool = True, stable_s: float | None = None
) -> Supervised:
    """A deployment with the settings of conf/config.yaml, without waiting for it."""
    settings = _settings() if stable_s is None else replace(_settings(), stable_s=stable_s)
    plan = _plan(name, program, port, state, settings)
    claim = _claim(plan, state)
    return Supervised(Spawned(), orders_for(plan, claim.folder, settings, detached=detached), claim)


@cache
def _settings() -> SuperviseConf:
    return compose([]).supervise


def _plan(name: str, program: Path, port: int, state: Path, settings: SuperviseConf) -> LaunchPlan:
    health = HttpCheck("/health")
    probes = ProbeSettings(**{field.name: getattr(settings, field.name) for field in fields(ProbeSettings)})
    return LaunchPlan(
        name=name,
        engine="trivial",
        device=Device("cpu"),
        model=Model("none", "file:/none", "gguf", "/none"),
        runtime="process",
        environment=Environment("current", sys.prefix, "3", managed=False),
        argv=(str(program),),
        endpoints=Endpoints(Endpoint("127.0.0.1", port)),
        probes=Probes(health, HttpCheck("/ask", "POST", {}, expect="answer"), health, probes),
        run_dir=str(state / "deployments" / name / "run"),
    )


def _claim(plan: LaunchPlan, state: Path) -> Claim:
    ledger = Ledger(state)
    with ledger.exclusive():
        claim = ledger.claim(plan.name, (plan.endpoints.http.port,), plan_json.public(plan))
    render_files(plan.files, plan.links, Path(plan.run_dir))
    return claim


def _own(program: Path, port: int, state: Path) -> None:
    """Own the supervisor until a signal comes, as a foreground rmlaunch does."""
    owner = deploy("server", program, port, state, detached=False)
    signal.signal(signal.SIGTERM, lambda *_: owner.stop())
    owner.wait_final()
    owner.close()


def _environment() -> Path:
    environment = describe("benchmark-supervisors", "managed", PEERS, cache_root())
    ensure(environment, Progress(quiet=True))
    return Path(environment.path)


# ---------------------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for parties; whatever was started for it is gone at the end, and so is the folder."""
    _environment()
    # Not in TMPDIR: Unix sockets are put here, whose paths end at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
    before = os.environ.copy()
    os.environ |= {_MARK: str(folder), "TMPDIR": str(folder)}
    try:
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)
        kill_marked(folder)
        shutil.rmtree(folder, ignore_errors=True)


def start_bystanders(count: int) -> None:
    """Processes of somebody else, as a machine in use has them; inside `scratch`."""
    script = f"for n in $(seq {count}); do sleep 600 & done; echo started; wait"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)  # noqa: S607
    assert shell.stdout is not None
    with shell.stdout as output:
        output.readline()


def marked(folder: Path) -> set[int]:
    """Every live process that was started for `folder`, or for a folder in it."""
    mark = f"{_MARK}={folder}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                if any(word == mark or word.startswith(mark + b"/") for word in words) and is_alive(int(entry.name)):
                    found.add(int(entry.name))
    return found


def kill_marked(folder: Path) -> None:
    """Supervisors may start a program while it is being killed, so until there is nothing."""

    def none_left() -> bool:
        for pid in (left := marked(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for(none_left, f"processes of {folder} do not end")


def wait_for(condition: Callable[[], bool], otherwise: str, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.005)


if __name__ == "__main__":
    _own(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
