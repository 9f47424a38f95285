"""What tests of supervision share: a plan for the misbehaving server, and a supervisor for it that always ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines.base import Device, Endpoint, Endpoints, Environment, HttpCheck, LaunchPlan, Model, Probes, ProbeSettings
from launcher import plan_json
from launcher.config.schema import SuperviseConf
from launcher.deployments.connection import Connection
from launcher.deployments.ledger import Claim, Ledger
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.prepare.steps import make_run_folder
from launcher.procfs import is_alive as is_alive
from launcher.runtimes.process import ProcessRuntime
from launcher.serving.hand_over import orders_for

FAKE = Path(__file__).parent / "fakes" / "misbehaving_server.py"


#: descriptors of names that no two processes of the machine have at once; they end with the process that has them
_RESERVED: deque[int] = deque()
_RESERVED_AT_MOST = 200


def free_port() -> int:
    """Return a port below those that the kernel gives to connections, since engines bind theirs seconds later; no other
    run of the tests chooses it meanwhile."""
    while True:
        port = random.randrange(20000, 30000)  # noqa: S311  (no secret)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _RESERVED.append(reserve(f"port {port}"))
            if len(_RESERVED) > _RESERVED_AT_MOST:
                os.close(_RESERVED.popleft())
            return port


def first_port() -> int:
    """Return the first of 50 ports that no other run of the tests has while this process lives."""
    for port in range(30000, 32750, 50):
        with contextlib.suppress(OSError):
            reserve(f"ports from {port}")
            return port
    raise AssertionError("55 runs of the tests have all ports from 30000; end some")


def reserve(name: str) -> int:
    """Hold a name in the kernel's table of sockets while the descriptor is open that this returns.

    Raises `OSError` where it is taken.
    """
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"\0rmlaunch-tests: {name}")
        return made.detach()


def fake_plan(
    state: Path, *options: str, startup_timeout_s: float = 10.0, leftovers: tuple[str, ...] = (), name: str = "fake"
) -> LaunchPlan:
    port = free_port()
    ready = HttpCheck("/health")
    return LaunchPlan(
        name=name,
        engine="fake",
        device=Device("cpu"),
        model=Model("none", "file:/none", "gguf", "/none"),
        runtime="process",
        environment=Environment("current", sys.prefix, "3.11", managed=False),
        argv=(sys.executable, str(FAKE), "--port", str(port), *options),
        endpoints=Endpoints(Endpoint("127.0.0.1", port)),
        probes=Probes(
            startup=ready,
            readiness=HttpCheck("/ask", "POST", {}, expect="answer"),
            liveness=ready,
            settings=ProbeSettings(
                startup_timeout_s, liveness_period_s=0.05, liveness_timeout_s=0.3, liveness_failures=2
            ),
        ),
        run_dir=str(state / "deployments" / name / "run"),
        leftovers=leftovers,
    )


def claimed(plan: LaunchPlan, state: Path) -> Claim:
    ledger = Ledger(state)
    with ledger.exclusive():
        claim = ledger.claim(plan.name, (plan.endpoints.http.port,), plan_json.public(plan))
    make_run_folder(plan)
    return claim


@contextlib.contextmanager
def supervised(plan: LaunchPlan, state: Path, max_crashes: int = 3, stop_grace_s: float = 5.0) -> Iterator[Supervised]:
    claim = claimed(plan, state)
    owner = Supervised(Spawned(), orders_for(plan, claim.folder, settings(max_crashes, stop_grace_s)), claim)
    try:
        yield owner
    finally:
        owner.close()


@contextlib.contextmanager
def detached(plan: LaunchPlan, state: Path, api_key: str | None = None, **orders_too: Any) -> Iterator[Path]:
    """The folder of a deployment that serves, and that nobody owns; whatever is left of it ends with the block."""
    claim = claimed(plan, state)
    orders = orders_for(plan, claim.folder, settings(3, 5.0), api_key, {"protocol": "x"}, detached=True)
    orders = dataclasses.replace(orders, **orders_too)
    owner = Supervised(Spawned(), orders, claim)
    try:
        owner.wait_ready()
        owner.close()
        yield claim.folder
    finally:
        owner.close()
        _end(claim.folder)


def _end(folder: Path) -> None:
    with contextlib.suppress(OSError), Connection(folder) as connection:
        for _ in connection.follow(time.monotonic() + 10, "kill"):
            pass
    ProcessRuntime().clear(str(folder / "run"), {})


def settings(max_crashes: int, stop_grace_s: float) -> SuperviseConf:
    return SuperviseConf(
        startup_timeout_s=0,  # the plan's probes have it
        stop_grace_s=stop_grace_s,
        max_crashes=max_crashes,
        backoff_s=0.05,
        backoff_max_s=0.1,
        stable_s=60,
        liveness_period_s=0,
        liveness_timeout_s=0,
        liveness_failures=0,
        stall_timeout_s=0,
        busy_timeout_s=0,
        log_mib=32,
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def marked_processes(run_dir: str) -> list[int]:
    """Every live process that carries the deployment's mark."""
    mark = f"RMLAUNCH_DEPLOYMENT={run_dir}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and is_alive(int(entry.name)):
                    found.append(int(entry.name))
    return found
