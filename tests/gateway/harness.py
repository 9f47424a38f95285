"""A gateway in a thread of the test's own process, and servers with OpenAI's API behind it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import uvloop

from launcher.config.gateway import Member
from launcher.gateway.compose_process import composed
from launcher.gateway.connection import ClientConnection
from launcher.gateway.errors import Failure
from launcher.gateway.server import Server
from launcher.gateway.settings import Route, Settings
from tests.supervision import free_port, wait_for

FAKE = Path(__file__).parents[1] / "fakes" / "openai_server.py"


class NoMachine:
    """Nothing is deployed here; `start` says what the test wants."""

    def __init__(self, starts: bool = False) -> None:
        self.started: list[str] = []
        self._starts = starts

    def start(self, name: str) -> bool:
        self.started.append(name)
        return self._starts

    async def load(self, name: str) -> Mapping[str, Any]:
        return {"name": name, "state": "READY"}

    async def unload(self, name: str) -> Mapping[str, Any]:
        raise Failure(404, f"there is no deployment {name!r} that runs", "model_not_found")

    def deployments(self) -> list[Mapping[str, Any]]:
        return []

    def log(self, name: str, lines: int) -> str:
        raise Failure(404, f"there is no log of a deployment {name!r} ({lines})", "not_found")


@dataclass
class Running:
    url: str
    port: int
    server: Server
    loop: asyncio.AbstractEventLoop
    machine: NoMachine

    def ask(self, text: str, model: str = "m", stream: bool = False, **more: Any) -> requests.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
        return requests.post(f"{self.url}/v1/chat/completions", json=body, stream=stream, timeout=20, **more)

    def do(self, what: Callable[[], Any]) -> Any:
        """In the gateway's own thread."""

        async def now() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(now(), self.loop).result(timeout=10)


@functools.cache
def _plain() -> Settings:
    return composed([], None)


def settings(routes: Mapping[str, list[Member]] | None = None, of_routes: Any = None, **more: Any) -> Settings:
    """Settings as they are without a word, with `routes` and `more`; `of_routes` changes what routes are told."""
    plain = _plain()
    base = dataclasses.replace(plain.deployment_defaults, **(of_routes or {}))
    made = [dataclasses.replace(base, name=name, members=members) for name, members in (routes or {}).items()]
    return dataclasses.replace(plain, routes=made, port=free_port(), deployment_defaults=base, **more)


def route(name: str, members: list[Member], **more: Any) -> Route:
    return dataclasses.replace(_plain().deployment_defaults, name=name, members=members, **more)


@contextlib.contextmanager
def gateway(made: Settings, machine: NoMachine | None = None, tick_s: float = 0.02) -> Iterator[Running]:
    """With a clock that looks more often than the real one, so that tests need not wait for it."""
    loop = uvloop.new_event_loop()
    machine = machine or NoMachine()
    ready = threading.Event()
    stop = asyncio.Event()
    served: list[Server] = []

    async def run() -> None:
        server = Server(made, loop, machine)
        server.use(made, {"THEIR_KEY": "their-secret"})
        served.append(server)
        listening = await loop.create_server(lambda: ClientConnection(server), made.host, made.port)
        ready.set()
        while not stop.is_set():
            server.tick()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), tick_s)
        listening.close()
        for connection in list(server.connections):
            connection.close()
        for exchange in list(server.exchanges):
            exchange.client_gone()
        for replica in server.table.replicas.values():
            for idle in replica.idle:
                idle.close()
        await asyncio.sleep(0.02)

    def thread() -> None:
        loop.run_until_complete(run())
        loop.close()

    running = threading.Thread(target=thread, daemon=True)
    running.start()
    assert ready.wait(10)
    try:
        yield Running(f"http://127.0.0.1:{made.port}", made.port, served[0], loop, machine)
    finally:
        loop.call_soon_threadsafe(stop.set)
        running.join(10)


@dataclass
class Fake:
    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def member(self) -> Member:
        return Member(name=self.name, url=f"http://127.0.0.1:{self.port}/v1", model="theirs")

    def told(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"http://127.0.0.1:{self.port}/asked", timeout=5).json()
        return answer

    @property
    def asked(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.told()["asked"]
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=5)


@contextlib.contextmanager
def fake(name: str = "a", port: int | None = None, *more: str) -> Iterator[Fake]:
    port = port or free_port()
    process = subprocess.Popen([sys.executable, str(FAKE), "--port", str(port), "--name", name, *more])
    made = Fake(name, port, process)
    try:
        wait_for(lambda: _answers(port))
        yield made
    finally:
        made.kill()


def _answers(port: int) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/", timeout=1).status_code == 200
    return False


def events(response: requests.Response) -> list[Any]:
    """What a stream says: an object for each event, and `[DONE]`."""
    found = []
    for line in response.iter_lines():
        if line.startswith(b"data: "):
            data = line[6:]
            found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


def text_of(said: list[Any]) -> str:
    pieces = [
        event["choices"][0]["delta"].get("content", "") for event in said if event != "[DONE]" and "choices" in event
    ]
    return "".join(pieces)


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> float:
    """Wait, and say how long it took."""
    began = time.monotonic()
    wait_for(condition, timeout_s)
    return time.monotonic() - began
