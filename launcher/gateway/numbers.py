"""The gateway's counts, as the status page shows them; `launcher/gateway/exposition.py` has them for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sized
from typing import Any, Protocol

from launcher.gateway.admission import Admission
from launcher.gateway.state import Histogram
from launcher.gateway.table import Table


class Counted(Protocol):
    """The part of the server that is counted."""

    table: Table
    admission: Admission
    clock: Callable[[], float]
    since: float  #: when it was started, by `clock`
    refusals: Counter[int]  #: requests that came to no route, by status

    @property
    def connections(self) -> Sized:
        """The clients that are connected."""


def state(server: Counted) -> dict[str, Any]:
    """Return all counts as JSON. Times are in seconds; a latency is the upper bound of its bucket."""
    table, now = server.table, server.clock()
    replicas = [
        {
            "name": it.name,
            "up": it.usable(now),
            "reason": it.why_not(now),
            "in_flight": it.in_flight,
            "requests": it.requests,
            "failures": it.failures,
        }
        for it in table.replicas.values()
    ]
    routes = [
        {
            "name": it.name,
            "deployments": [member.name for member in it.settings.members],
            "strategy": it.settings.strategy,
            "in_flight": it.gate.active,
            "limit": it.gate.limit,
            "waiting": waiting(server, it.name),
            "answers": {str(code): count for code, count in sorted(it.codes.items())},
            "p50_s": _finite(it.seconds, 0.5),
            "p95_s": _finite(it.seconds, 0.95),
            "first_byte_p50_s": _finite(it.first_bytes, 0.5),
        }
        for it in table.states()
    ]
    return {
        "up_s": round(now - server.since, 1),
        "connections": len(server.connections),
        "refusals": {str(code): count for code, count in sorted(server.refusals.items())},
        "models": table.names(),
        "routes": routes,
        "replicas": replicas,
    }


def waiting(server: Counted, route: str) -> int:
    """Return how many requests wait for a place at the route."""
    state = server.table.find(route)
    return sum(ticket.route_gate is state.gate for ticket in server.admission.waiting) if state else 0


def _finite(histogram: Histogram, share: float) -> float | None:
    found = histogram.quantile(share)
    return None if found is None or found == float("inf") else found
