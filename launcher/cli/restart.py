"""The verb `restart`: drain a deployment and start it again."""

from __future__ import annotations

import argparse
import time

from engines.base import DeploymentError
from launcher.deployments.records import Deployments
from launcher.output import print_endpoint
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase

#: of a restart, beyond its start
_STOP_TIMEOUT_S = 60.0
_STARTUP_S = 600.0  #: where the record does not tell


def restart(args: argparse.Namespace) -> int:
    """Drain the engine and start it again. Raises `DeploymentError` where it does not come to serve."""
    item = Deployments(state_root()).find(args.name)
    starts, startup_s = item.news.starts, item.find("probes", "startup", "timeout_s")
    limit = (startup_s if isinstance(startup_s, (int, float)) else _STARTUP_S) + _STOP_TIMEOUT_S
    with item.connect() as connection:
        news = connection.until(
            # BACKOFF: it will be tried again for as long as that takes, and the user has the cause now.
            lambda news: (news.phase in (Phase.READY, Phase.BACKOFF) and news.starts > starts) or news.phase.final,
            "restart",
            deadline=time.monotonic() + limit,
        )
    if news is None or news.phase is not Phase.READY:
        told = f"{news.phase.value} after the restart: {news.reason}" if news else "gone: its supervisor has ended"
        raise DeploymentError(f"{item.name} is {told}")
    print_endpoint(item.name, item.told("endpoints", "http"))
    return 0
