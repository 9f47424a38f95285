"""The state of a route and of a key, which outlives their settings: limits, who is inside, and what was counted."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from launcher.gateway.admission import Gate
from launcher.gateway.body import Budget
from launcher.gateway.routing import Choice, Replica
from launcher.gateway.settings import Key, Route

#: the upper bounds of Prometheus' buckets, in seconds
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class Histogram:
    """Durations, counted by bucket; the last bucket has no upper bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0  #: seconds of all of them

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def quantile(self, share: float) -> float | None:
        """Return the upper bound, in seconds, of the bucket that the quantile is in; None where nothing was counted."""
        wanted, seen = share * sum(self.counts), 0
        for bound, count in zip((*BUCKETS, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return None


class RouteState:
    """A route or a deployment that can be asked, by the name that clients give."""

    __slots__ = ("choice", "codes", "first_bytes", "gate", "name", "seconds", "settings")

    def __init__(self, settings: Route, replicas: dict[str, Replica]) -> None:
        self.name = settings.name
        self.gate = Gate()
        self.codes: dict[int, int] = {}
        self.seconds = Histogram()
        self.first_bytes = Histogram()
        self.use(settings, replicas)

    def use(self, settings: Route, replicas: dict[str, Replica]) -> None:
        """Take on new settings; what is counted and waits stays."""
        self.settings = settings
        self.gate.limit = settings.max_concurrency
        self.choice = Choice(settings, replicas)

    def count(self, status: int, seconds: float, first_byte: float | None) -> None:
        """Count an answer with its status; `first_byte` is a stream's, in seconds, and None for any other answer."""
        self.codes[status] = self.codes.get(status, 0) + 1
        self.seconds.add(seconds)
        if first_byte is not None:
            self.first_bytes.add(first_byte)


class KeyState:
    """A key that may ask; `nobody` is one, too."""

    __slots__ = ("bodies", "digest", "gate", "name", "requests", "routes")

    def __init__(self, key: Key) -> None:
        self.name = key.name
        self.gate = Gate()
        self.bodies = Budget(0)  #: bytes that the bodies of its requests hold
        self.requests = 0
        self.use(key)

    def use(self, key: Key) -> None:
        """Take on new settings; what is counted and in flight stays."""
        self.digest = bytes.fromhex(key.sha256)
        self.gate.limit = key.max_concurrency
        self.routes = None if key.routes is None else frozenset(key.routes)

    def may_ask(self, route: str) -> bool:
        """Return whether the key may ask the route or deployment of that name."""
        return self.routes is None or route in self.routes
