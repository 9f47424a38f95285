"""The gateway as a deployment: a plan like an engine's, so that it is supervised, listed and stopped like one."""

from __future__ import annotations

import sys

from engines.base import Device, Endpoint, Endpoints, Environment, HttpCheck, LaunchPlan, Model, Probes, ProbeSettings
from launcher.config.gateway import ENGINE
from launcher.config.schema import SuperviseConf
from launcher.gateway.reload import FILE, ComposedRequest
from launcher.gateway.settings import Settings
from launcher.inheritance import ALL

#: the gateway's program; not `-m`, which would import from whatever folder it stands in
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from launcher.gateway.main import main; main()"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (to connect to it, not to bind)


def plan(name: str, asked: ComposedRequest, run_dir: str) -> LaunchPlan:
    """Return the plan of a gateway called `name`; its settings are a file in `run_dir`."""
    settings = asked.settings
    health = HttpCheck("/health", expect="status")
    return LaunchPlan(
        name=name,
        engine=ENGINE,
        device=Device("cpu", ids=()),
        model=Model("–", "", "", ""),
        runtime="process",
        environment=Environment("current", sys.prefix, f"{sys.version_info[0]}.{sys.version_info[1]}", managed=False),
        argv=(sys.executable, "-c", _PROGRAM, f"{run_dir}/{FILE}"),
        endpoints=Endpoints(Endpoint(_WILDCARDS.get(settings.host, settings.host), settings.port)),
        probes=Probes(
            startup=health,
            readiness=health,
            liveness=health,
            settings=ProbeSettings(startup_timeout_s=60.0, liveness_period_s=5.0, liveness_timeout_s=5.0),
        ),
        run_dir=run_dir,
        # It is rmlaunch itself: it composes configs and starts deployments, and either may read any variable.
        inherit=ALL,
        files={FILE: asked.dumps()},
    )


def supervise(settings: Settings) -> SuperviseConf:
    """Return how a gateway is supervised; it may drain before it is stopped."""
    return SuperviseConf(
        startup_timeout_s=60.0,
        stop_grace_s=settings.drain_s + 5.0,
        max_crashes=5,
        backoff_s=1.0,
        backoff_max_s=30.0,
        stable_s=60.0,
        liveness_period_s=5.0,
        liveness_timeout_s=5.0,
        liveness_failures=3,
        stall_timeout_s=60.0,
        busy_timeout_s=60.0,
        log_mib=32,
    )
