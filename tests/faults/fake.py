"""`rmlaunch` for the misbehaving server, which is no engine that its command line knows.

    python -m tests.faults.fake [-d] --name NAME [--port N] [options of the misbehaving server]

With -d it returns when the server is ready; else it owns it until it ends, and SIGTERM asks it to stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

from engines.base import DeploymentError, Endpoint, Endpoints, LaunchPlan
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.paths import state_root
from launcher.serving.hand_over import orders_for
from launcher.supervise.lifecycle import Phase
from tests.supervision import claimed, fake_plan, settings


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-d", dest="detached", action="store_true")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-crashes", type=int, default=3)
    asked, options = parser.parse_known_args()
    state = state_root()
    plan = _plan(state, asked.name, asked.port, options)
    claim = claimed(plan, state)
    conf = dataclasses.replace(settings(asked.max_crashes, stop_grace_s=1.0), stable_s=1.0)
    owner = Supervised(Spawned(), orders_for(plan, claim.folder, conf, detached=asked.detached), claim)
    signal.signal(signal.SIGTERM, lambda *_: owner.stop())
    try:
        owner.wait_ready()
        if asked.detached:
            return 0
        news = owner.wait_final()
        if news.phase is Phase.FAILED:
            raise owner.failure()
        sys.stderr.write(f"{plan.name}: {news.phase.value}, left: {news.leftovers}\n")
        return 0
    except DeploymentError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    finally:
        owner.close()


def _plan(state: Path, name: str, port: int | None, options: list[str]) -> LaunchPlan:
    plan = fake_plan(state, *options, name=name)
    probes = dataclasses.replace(plan.probes, liveness=plan.probes.readiness)  # as real engines have it
    plan = dataclasses.replace(plan, probes=probes)
    if port is None:
        return plan
    chosen = str(plan.endpoints.http.port)
    argv = tuple(str(port) if word == chosen else word for word in plan.argv)
    return dataclasses.replace(plan, argv=argv, endpoints=Endpoints(Endpoint("127.0.0.1", port)))


if __name__ == "__main__":
    sys.exit(main())
