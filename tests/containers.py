"""What tests of containers share: the misbehaving server in one, and how its supervisor is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.base import Container, LaunchPlan, Mount, Port
from engines.container import LABEL_FOLDER, LABEL_NAME
from launcher.deployments.connection import Connection
from tests.dockerd import BASE, PYTHON, Daemon
from tests.supervision import FAKE, fake_plan, is_alive, marked_processes, wait_for


def plan_of(daemon: Daemon, state: Path, *options: str, name: str = "fake", **changes: object) -> LaunchPlan:
    """The fake server in a container."""
    plan = fake_plan(state, *options, startup_timeout_s=30, name=name)
    port, run_dir = plan.endpoints.http.port, plan.run_dir
    container = Container(
        name=f"rmlaunch-test-{os.getpid()}-{name}",
        image=BASE,
        daemon=daemon.host,
        user=f"{os.getuid()}:{os.getgid()}",
        ports=(Port("127.0.0.1", port),),
        mounts=(Mount(run_dir, run_dir, read_only=False), Mount(str(FAKE.parent), str(FAKE.parent))),
        env={"RMLAUNCH_DEPLOYMENT": run_dir, "HOME": run_dir},
        labels={LABEL_NAME: name, LABEL_FOLDER: run_dir},
    )
    container = dataclasses.replace(container, **changes)  # type: ignore[arg-type]
    argv = (PYTHON, str(FAKE), "--host", "0.0.0.0", "--port", str(port), *options)
    settings = dataclasses.replace(plan.probes.settings, liveness_period_s=0.2, liveness_timeout_s=0.5)
    return dataclasses.replace(
        plan,
        runtime="docker",
        argv=argv,
        container=container,
        probes=dataclasses.replace(plan.probes, settings=settings),
    )


def containers(daemon: Daemon, plan: LaunchPlan) -> list[dict[str, object]]:
    with contextlib.closing(daemon.client()) as client:
        found: list[dict[str, object]] = client.containers(
            all=True, filters={"label": f"{LABEL_FOLDER}={plan.run_dir}"}
        )
        return found


def name_of(plan: LaunchPlan) -> str:
    assert plan.container is not None
    return plan.container.name


def nothing_left(daemon: Daemon, plan: LaunchPlan) -> bool:
    return not containers(daemon, plan) and not marked_processes(plan.run_dir)


def lose_supervisor(folder: Path) -> Mapping[str, Any]:
    """Kill it; returns what it said last."""
    last = status(folder)
    os.kill(last["supervisor"], signal.SIGKILL)
    wait_for(lambda: not is_alive(last["supervisor"]))
    return last


def status(folder: Path) -> Mapping[str, Any]:
    with Connection(folder) as connection:
        return connection.ask("status")
