"""From the server's own first 200 to our READY, the canary request aside.

Another process asks the engine's ready URL every millisecond from the start on; the supervisor does not know of it.
"""

from __future__ import annotations

import http.client
import multiprocessing
import time
from multiprocessing.connection import Connection

from benchmarks.table import show
from engines.base import Endpoint
from launcher import launch
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News

ROUNDS = 5


def main() -> None:
    rows = []
    for engine, path, first_port in (("llamacpp", "/health", 18310), ("triton", "/v2/health/ready", 18320)):
        late = sorted(_lateness_ms(engine, path, first_port) for _ in range(ROUNDS))
        rows.append([engine, f"{late[0]:.0f}", f"{late[len(late) // 2]:.0f}", f"{late[-1]:.0f}"])
    show("Server's first 200 → READY, canary aside (at most 50 ms)", ["", "least ms", "median ms", "most ms"], rows)


def _lateness_ms(engine: str, path: str, port: int) -> float:
    ours, theirs = multiprocessing.Pipe()
    watcher = multiprocessing.Process(target=_watch, args=(Endpoint("127.0.0.1", port), path, theirs), daemon=True)
    watcher.start()
    ports = [f"port={port}", *([f"grpc_port={port + 1}", f"metrics_port={port + 2}"] if engine == "triton" else [])]
    serving = launch(f"engine={engine}", "device=cpu", "model=smollm2", *ports)
    heard = _Heard(serving)
    with serving:
        first_200: float = ours.recv()
        canary_s = serving.news.timings["readiness_s"]
    watcher.join(10)
    return (heard.at - first_200 - canary_s) * 1000


class _Heard:
    """When READY reached this process."""

    def __init__(self, serving: ServingEngine) -> None:
        self.at = 0.0
        serving.on_news = self._take

    def _take(self, news: News) -> None:
        if news.phase is Phase.READY and not self.at:
            self.at = time.monotonic()


def _watch(endpoint: Endpoint, path: str, pipe: Connection) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=1)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                pipe.send(time.monotonic())
                return
        except (TimeoutError, OSError, http.client.HTTPException):
            pass
        time.sleep(0.001)
