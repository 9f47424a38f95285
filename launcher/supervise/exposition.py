"""The numbers that a supervisor counts, in Prometheus' text format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from launcher.supervise.lifecycle import Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: clients that are answered at the same time; more of them are sent away
_AT_ONCE = 8

#: seconds that a client may be silent
_PATIENCE_S = 5.0

Sample = tuple[Mapping[str, str], float]


def render(
    name: str,
    phase: Phase,
    starts: int,
    crashes: int,
    timings: Mapping[str, float],
    exits: Mapping[int, int],
) -> str:
    """`exits` is how often the program ended with which code, -N by signal N."""
    families: list[tuple[str, str, str, Iterable[Sample]]] = [
        ("rmlaunch_state", "gauge", "1 for the state that the deployment is in, 0 for the others",
         [({"state": known.value}, float(known is phase)) for known in Phase]),
        ("rmlaunch_starts_total", "counter", "how often the engine was started", [({}, starts)]),
        ("rmlaunch_crashes_in_a_row", "gauge", "crashes since it last served for supervise.stable_s", [({}, crashes)]),
        ("rmlaunch_exits_total", "counter", "ends of the engine's program by exit code, -N by signal N",
         [({"code": str(code)}, count) for code, count in sorted(exits.items())]),
        ("rmlaunch_seconds", "gauge", "how long the parts of the last start took, and the last liveness request",
         [({"part": part.removesuffix("_s")}, seconds) for part, seconds in sorted(timings.items())]),
    ]  # fmt: skip
    lines = []
    for metric, kind, about, samples in families:
        lines += [f"# HELP {metric} {about}", f"# TYPE {metric} {kind}"]
        lines += [f"{metric}{_labels({'deployment': name, **labels})} {value:g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def serve(port: int, text: Callable[[], str], patience_s: float = _PATIENCE_S) -> None:
    """Answer `GET /metrics` on loopback from now on, in a few threads: whoever is on this machine may connect.

    Raises `OSError` where the port is taken.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        timeout = patience_s

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = text().encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line for each scrape says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        #: a full queue makes clients wait a second and longer for their next attempt, instead of being sent away
        request_queue_size = 128
        room = threading.BoundedSemaphore(_AT_ONCE)

        def process_request(self, request: Any, client_address: Any) -> None:
            if self.room.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                self.room.release()

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
