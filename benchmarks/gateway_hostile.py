"""The gateway under clients and servers that mean no good: what it takes of memory, and how long the others wait.

    BEFORE=/path/of/another/checkout python -m benchmarks.gateway_hostile

`BEFORE` names a checkout with an environment of its own, which is measured in the same run. Load stays on loopback, is
bounded, and ends by itself. The query of death goes to two real llama.cpp.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.gateway_parties import KEY, earlier, our_gateway, upstreams
from benchmarks.table import percentile, show
from tests.supervision import free_port, wait_for

MIB = 1 << 20
BODY_MIB, CONNECTIONS, BOMBS = 31, 60, 3
DESCRIPTORS, IDLE = 256, 300
SECONDS = 8.0
QUERIES = 3
_ASK = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 8}


@dataclass
class Seen:
    """Measurements meanwhile: of somebody else's requests, and of what the gateway takes."""

    most_mib: float = 0.0
    times_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def ms(self, share: float) -> str:
        return f"{percentile(self.times_s, share) * 1000:.1f}" if self.times_s else "none answered"


def main() -> None:
    pythons = {"rmlaunch": sys.executable, **({"before": python} if (python := earlier()) else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with upstreams(folder) as (first, second):
            for title, run in (
                (f"{CONNECTIONS} bodies of {BODY_MIB} MiB without a key", _keyless),
                (f"{BOMBS} JSON bombs of {BODY_MIB} MiB", _bombs),
                (f"{IDLE} idle connections at {DESCRIPTORS} descriptors", _idle),
                ("a server whose header does not end", _endless),
            ):
                rows = [
                    run(folder / f"{run.__name__}{who}", who, python, [first, second])
                    for who, python in pythons.items()
                ]
                show(f"Gateway: {title}", ["", "most memory MiB", "others' p50 ms", "p99 ms", "slowest ms",
                                           "their answers", "restarts"], rows)  # fmt: skip
    rows = [_deaths(who, python) for who, python in pythons.items()]
    show(f"Gateway: a query of death against [a, b], {QUERIES} times",
         ["", "what the client is told", "crashes of a and b", "5 s later"], rows)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the attacks


def _keyless(folder: Path, who: str, python: str, servers: Sequence[int]) -> list[str]:
    port = free_port()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (BODY_MIB * MIB + 1)
    with our_gateway(folder, port, servers, key=True, python=python) as pid, _watched(pid, _health(port)) as seen:
        _side_by_side([lambda: _send(port, head, BODY_MIB * MIB)] * CONNECTIONS)
    return _row(who, seen, folder)


def _bombs(folder: Path, who: str, python: str, servers: Sequence[int]) -> list[str]:
    port = free_port()
    bomb = b'{"model": "m", "x": [' + b"[[]]," * (BODY_MIB * MIB // 5) + b"[]]}"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n" % KEY.encode()
    whole = head + b"content-length: %d\r\n\r\n" % len(bomb) + bomb
    with our_gateway(folder, port, servers, key=True, python=python) as pid, _watched(pid, _health(port)) as seen:
        _side_by_side([lambda: _send(port, whole, 0)] * BOMBS)
    return _row(who, seen, folder)


def _idle(folder: Path, who: str, python: str, servers: Sequence[int]) -> list[str]:
    port = free_port()
    limits = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]
    with our_gateway(folder, port, servers, key=True, python=python, limits=limits) as pid:
        with contextlib.ExitStack() as stack, _watched(pid, _chat(port)) as seen:
            for _ in range(IDLE):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
            time.sleep(3 * SECONDS)  # as long as its supervisor takes to call it dead
        restarts = _restarts(folder)
    return [*_row(who, seen, folder)[:-1], restarts]


def _endless(folder: Path, who: str, python: str, servers: Sequence[int]) -> list[str]:
    port = free_port()
    with _endless_server() as bad:
        more = [f"gateway.routes.bad=['http://127.0.0.1:{bad}/v1']"]
        with our_gateway(folder, port, servers, key=True, python=python, more=more) as pid:
            with _watched(pid, _chat(port)) as seen:
                _side_by_side([lambda: _ask(port, {**_ASK, "model": "bad"}, SECONDS)])
                time.sleep(1.0)
            return _row(who, seen, folder)


def _deaths(who: str, python: str) -> list[str]:
    with tempfile.TemporaryDirectory() as state:
        port = free_port()
        environment = {**os.environ, "RMLAUNCH_STATE": state, "RMLAUNCH_FIRST_PORT": "18001"}

        def rmlaunch(*words: str) -> str:
            program = str(Path(python).with_name("rmlaunch"))  # its module is not the same in every checkout
            done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=300,
                                  check=True)  # fmt: skip
            return done.stdout

        try:
            for name in ("a", "b"):
                rmlaunch("up", "-d", "engine=llamacpp", f"name={name}")
            rmlaunch("gateway", "up", "-d", f"gateway.port={port}", "gateway.routes.m=[a,b]")
            death = {**_ASK, "grammar": "root ::= " + "(" * 200_000}
            told = [_ask(port, death, 60) for _ in range(QUERIES)]
            time.sleep(5.0)
            said = [json.loads(rmlaunch("status", name, "--json")) for name in ("a", "b")]
            crashes = " + ".join(str(one["starts"] - 1 if one["state"] == "READY" else one["crashes"]) for one in said)
            later = [f"{name} {_ask(port, {**_ASK, 'model': name}, 10)}" for name in ("a", "b")]
            return [who, ", ".join(told), crashes, ", ".join(later)]
        finally:
            rmlaunch("stop", "--all", "--now")


# ----------------------------------------------------------------------------------------------------------- pieces


def _row(who: str, seen: Seen, folder: Path) -> list[str]:
    slowest = f"{max(seen.times_s) * 1000:.0f}" if seen.times_s else "–"
    answers = ", ".join(f"{count} × {status}" for status, count in seen.statuses.most_common())
    return [who, f"{seen.most_mib:.0f}", seen.ms(0.5), seen.ms(0.99), slowest, answers, _restarts(folder)]


def _restarts(folder: Path) -> str:
    record = folder / "state" / "deployments" / "gateway" / "state.json"
    return str(json.loads(record.read_text())["starts"] - 1)


@contextlib.contextmanager
def _watched(pid: int, ask: Callable[[], str]) -> Iterator[Seen]:
    """Somebody who asks all the time, and a look at the gateway's memory every few milliseconds."""
    seen, ended = Seen(), threading.Event()

    def client() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            status = ask()
            seen.statuses[status] += 1
            if status == "200":
                seen.times_s.append(time.perf_counter() - began)
            ended.wait(0.005)

    def memory() -> None:
        with contextlib.suppress(psutil.Error):
            gateway = psutil.Process(pid)
            while not ended.wait(0.005):
                seen.most_mib = max(seen.most_mib, gateway.memory_info().rss / MIB)

    threads = [threading.Thread(target=one) for one in (client, memory)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(seen.times_s) > 20)
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _health(port: int) -> Callable[[], str]:
    session = requests.Session()
    return lambda: _status(lambda: session.get(f"http://127.0.0.1:{port}/health", timeout=30))


def _chat(port: int) -> Callable[[], str]:
    """A client with a connection of its own for each request, as a probe has."""
    return lambda: _ask(port, _ASK, 10)


def _ask(port: int, body: dict[str, Any], timeout_s: float) -> str:
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return _status(lambda: requests.post(url, json=body, headers=headers, timeout=timeout_s))


def _status(ask: Callable[[], requests.Response]) -> str:
    try:
        return str(ask().status_code)
    except requests.RequestException as exc:
        return type(exc).__name__


def _side_by_side(works: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(port: int, data: bytes, more: int) -> None:
    """Send `data`, and `more` bytes of nothing, as long as somebody reads; then wait a moment for an answer."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        client.sendall(data)
        block = b" " * 65536
        for _ in range(more // len(block)):
            client.sendall(block)
        client.recv(1)


@contextlib.contextmanager
def _endless_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.settimeout(SECONDS)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                deadline = time.monotonic() + SECONDS
                while time.monotonic() < deadline:
                    connection.sendall(b"a" * 4096)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


if __name__ == "__main__":
    main()
