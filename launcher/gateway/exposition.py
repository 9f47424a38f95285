"""The gateway's counts in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from launcher.gateway.numbers import Counted, waiting
from launcher.gateway.state import BUCKETS, Histogram

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(server: Counted) -> bytes:
    """Return all counts, as of now."""
    registry = CollectorRegistry()
    registry.register(_Numbers(server))
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, server: Counted) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        table, now = self._server.table, self._server.clock()
        routes = list(table.states())
        answers = (((it.name, str(code)), count) for it in routes for code, count in it.codes.items())
        yield _counter("requests", "answers by route and status; 499 is a client that left", ("route", "code"), answers)
        yield _counter("refusals", "requests that came to no route, by status", ("code",),
                       (((str(code),), count) for code, count in self._server.refusals.items()))  # fmt: skip
        yield _histogram("request_seconds", "from a request to the end of its answer",
                         ((state.name, state.seconds) for state in routes))  # fmt: skip
        yield _histogram("first_byte_seconds", "from a request to the first byte of its stream",
                         ((state.name, state.first_bytes) for state in routes))  # fmt: skip
        yield _gauge("in_flight", "requests that have their place", ("route",),
                     (((state.name,), state.gate.active) for state in routes))  # fmt: skip
        yield _gauge("waiting", "requests that wait for a place", ("route",),
                     (((state.name,), waiting(self._server, state.name)) for state in routes))  # fmt: skip
        yield _counter("key_requests", "requests by whose key they came with", ("key",),
                       (((key.name,), key.requests) for key in table.askers()))  # fmt: skip
        replicas = list(table.replicas.values())
        yield _gauge("replica_up", "1 for a deployment that is sent requests", ("deployment",),
                     (((it.name,), float(it.usable(now))) for it in replicas))  # fmt: skip
        yield _counter("replica_requests", "requests that were sent to a deployment", ("deployment",),
                       (((it.name,), it.requests) for it in replicas))  # fmt: skip
        yield _counter("replica_failures", "requests that a deployment has failed", ("deployment",),
                       (((it.name,), it.failures) for it in replicas))  # fmt: skip
        yield _gauge("connections", "clients that are connected", (), (((), len(self._server.connections)),))


_Samples = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, about: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = CounterMetricFamily(f"rmlaunch_gateway_{name}", about, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _gauge(name: str, about: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(f"rmlaunch_gateway_{name}", about, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _histogram(name: str, about: str, samples: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(f"rmlaunch_gateway_{name}", about, labels=("route",))
    for route, histogram in samples:
        buckets, seen = [], 0
        for bound, count in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), seen))
        family.add_metric((route,), buckets, histogram.total)
    return family
