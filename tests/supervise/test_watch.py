"""What is taken for life: counters that grow, an answer, or for a while the processor's time; and what is not."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engines.base import Endpoint, HttpCheck, Probes, ProbeSettings
from launcher.runtimes.base import Activity
from launcher.supervise.lifecycle import Crashed, Event, Missed, Proved, Recovered, TimedOut
from launcher.supervise.probes import Door, count
from launcher.supervise.watch import Effort, Watch

PERIOD_S, TIMEOUT_S = 0.02, 0.1


@dataclass
class Server:
    """What a test changes while it runs."""

    port: int = 0
    tokens: float = 0.0
    growing: bool = False  #: the counter goes up whenever it is read
    answering: bool = True
    cpu_s: float = 0.0
    working: bool = False  #: processor time goes up whenever it is looked at
    asked: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def activity(self) -> Activity | None:
        self.cpu_s += 100.0 if self.working else 0.0
        return Activity(self.cpu_s, 0)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                state.tokens += 1 if state.growing else 0
                self._say(f'# TYPE tokens counter\ntokens_more 5\ntokens{{m="a"}} {state.tokens}\ntokens{{m="b"}} 1\n')
            else:
                self._say("{}")

        def do_POST(self) -> None:
            state.asked += 1
            if not state.answering:
                state.released.wait(10)
            self._say(json.dumps({"answer": "yes"}))

        def _say(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client has had enough
                super().handle()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        state.port = listener.server_address[1]
        threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        state.released.set()
        listener.shutdown()


def watch(server: Server, events: queue.SimpleQueue[Event], busy_timeout_s: float = 60, stall_timeout_s: float = 60,
          startup: str = "/ready") -> Watch:  # fmt: skip
    canary = HttpCheck("/ask", "POST", {}, expect="answer")
    settings = ProbeSettings(10, PERIOD_S, TIMEOUT_S, 2, stall_timeout_s, busy_timeout_s)
    return Watch(
        Door(Endpoint("127.0.0.1", server.port)),
        Probes(
            HttpCheck(startup, expect=None if startup == "/ready" else "never"), canary, canary, settings, ("tokens",)
        ),
        is_ours=lambda: True,
        report=events.put,
        effort=Effort(server.activity, lambda: 0),
        metrics=f"http://127.0.0.1:{server.port}/metrics",
    )


@pytest.fixture
def events(server: Server) -> Iterator[queue.SimpleQueue[Event]]:
    """Of a server that has just become ready."""
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    running = watch(server, said)
    assert said.get(timeout=5) == Proved()
    yield said
    running.cancel()


def test_a_server_whose_counters_grow_is_not_asked(server: Server, events: queue.SimpleQueue[Event]) -> None:
    server.growing, server.answering, asked = True, False, server.asked
    with pytest.raises(queue.Empty):
        events.get(timeout=20 * PERIOD_S)
    assert server.asked == asked

    server.growing = False
    assert isinstance(events.get(timeout=5), Missed)


def test_a_server_that_stands_still_and_does_not_answer_is_dead(
    server: Server, events: queue.SimpleQueue[Event]
) -> None:
    server.answering = False

    assert isinstance(events.get(timeout=5), Missed)
    crashed = events.get(timeout=5)
    assert isinstance(crashed, Crashed)
    assert crashed.reason.startswith("2 liveness checks in a row failed: TimeoutError from /ask")


def test_one_failure_is_forgotten_by_an_answer(server: Server, events: queue.SimpleQueue[Event]) -> None:
    server.answering = False
    assert isinstance(events.get(timeout=5), Missed)
    server.answering = True
    server.released.set()

    assert events.get(timeout=5) == Recovered()
    with pytest.raises(queue.Empty):
        events.get(timeout=10 * PERIOD_S)


def test_a_server_that_computes_is_busy_for_a_while(server: Server) -> None:
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    running = watch(server, said, busy_timeout_s=1)
    assert said.get(timeout=5) == Proved()
    server.working, server.answering = True, False

    with pytest.raises(queue.Empty):
        said.get(timeout=0.5)
    assert isinstance(said.get(timeout=5), Missed)
    assert isinstance(said.get(timeout=5), Crashed)
    running.cancel()


def test_a_start_in_which_nothing_moves_ends_before_its_time(server: Server) -> None:
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    watch(server, said, stall_timeout_s=0.2, startup="/not-yet")

    late = said.get(timeout=5)
    assert isinstance(late, TimedOut)
    assert late.reason.startswith(
        "nothing moved for 0.2 s (supervise.stall_timeout_s), neither its log nor the processor"
    )


def test_a_start_that_moves_has_its_time(server: Server) -> None:
    server.working = True
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    running = watch(server, said, stall_timeout_s=0.2, startup="/not-yet")

    with pytest.raises(queue.Empty):
        said.get(timeout=1)
    running.cancel()


def test_counters_are_summed_over_their_labels_and_nothing_else(server: Server) -> None:
    server.tokens = 6
    door, url = Door(Endpoint("127.0.0.1", server.port)), f"http://127.0.0.1:{server.port}/metrics"

    assert count(door, url, ("tokens",), 1) == 7
    assert count(door, url, ("tokens", "tokens_more"), 1) == 12
    assert count(door, url, ("others",), 1) is None
    assert count(door, "http://127.0.0.1:9/metrics", ("tokens",), 1) is None


@pytest.mark.parametrize(
    ("activities", "sizes", "worked", "moved"),
    [
        ([Activity(1, 0), Activity(1, 0)], [0, 0], False, False),
        ([Activity(1, 0), Activity(99, 0)], [0, 0], True, True),
        ([Activity(1, 0), Activity(1, 5)], [0, 0], False, True),
        ([Activity(1, 0), Activity(1, 0)], [0, 9], False, True),
        ([None, None], [0, 0], False, True),
    ],
    ids=["nothing", "processor", "bytes read", "a line in the log", "not to be seen"],
)
def test_signs_of_effort(activities: list[Activity | None], sizes: list[int], worked: bool, moved: bool) -> None:
    for asked, expected in (("worked", worked), ("moved", moved)):
        left = iter(zip(activities, sizes, strict=True))
        now: list[tuple[Activity | None, int]] = [next(left)]
        effort = Effort(lambda now=now: now[0][0], lambda now=now: now[0][1])  # type: ignore[misc]
        getattr(effort, asked)()
        now[0] = next(left)

        assert getattr(effort, asked)() is expected
