"""`make bench`: every number beside its peer, in one run, as Markdown on stdout."""

from __future__ import annotations

from benchmarks import (
    docker,
    engine_infer,
    engine_start,
    gateway,
    gateway_servers,
    infer_overhead,
    launch_overhead,
    ready_latency,
    supervision,
    throughput,
)


def main() -> None:
    launch_overhead.main()
    infer_overhead.main()
    ready_latency.main()
    engine_start.main()
    engine_infer.main()
    docker.main()
    throughput.main()
    supervision.main()
    gateway.main()
    gateway_servers.main()


if __name__ == "__main__":
    main()
