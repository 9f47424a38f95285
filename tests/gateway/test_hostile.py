"""What clients and servers may send that mean no good: a corpus, kept as data in `hostile/`."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from launcher.config.gateway import Member
from tests.gateway.harness import Fake, Running, events, gateway, settings, text_of, until

_FOLDER = Path(__file__).parent / "hostile"
_ENDLESS_BYTES = 256 << 20  #: more than any limit, so that a test of one that is not there ends too


def corpus(name: str) -> list[Any]:
    rows = yaml.safe_load((_FOLDER / name).read_text())
    return [pytest.param(row, id=row["is"]) for row in rows]


def pieces(parts: Sequence[Any]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, str):
            yield part.encode("latin-1")
        elif "count" in part:
            yield "".join(part["of"] % number for number in range(part["count"])).encode("latin-1")
        else:
            ((times, text),) = part.items()
            data = text.encode("latin-1")
            if times == "endless":
                block = data * (65536 // len(data))
                yield from (block for _ in range(_ENDLESS_BYTES // len(block)))
            else:
                yield data * times


@pytest.fixture(scope="module")
def it(a: Fake) -> Iterator[Running]:
    with gateway(settings({"m": [a.member]}, request_timeout_s=5.0)) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_bugs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "a bug" not in caplog.text


@pytest.mark.parametrize("row", corpus("requests.yaml"))
def test_a_hostile_request_is_refused_and_harms_nobody(row: Any, it: Running) -> None:
    before = len(it.server.connections)
    answer = _sent(it.port, b"".join(pieces(row["send"])))

    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", answer)]
    assert statuses[0] == row["answer"]
    assert statuses[-1] == row.get("then", row["answer"])
    assert it.ask("hi").status_code == 200
    until(lambda: len(it.server.connections) <= before + 1)
    assert (it.server.bodies.held, it.server.heads.held) == (0, 0)


@pytest.mark.parametrize("row", corpus("bodies.yaml"))
def test_a_hostile_body_is_refused_and_no_server_sees_it(row: Any, it: Running, a: Fake) -> None:
    asked = a.told()["asked"]
    body = b"".join(pieces(row["body"]))

    answer = requests.post(f"{it.url}/v1/chat/completions", data=body, timeout=20)

    assert (answer.status_code, answer.json()["error"]["code"]) == (row["answer"], row["code"])
    if row["answer"] == 400:
        assert len(a.asked) == len(asked)
    until(lambda: it.server.bodies.held == 0)


@pytest.mark.parametrize("row", corpus("answers.yaml"))
def test_a_hostile_answer_is_its_servers_fault_and_another_is_asked(row: Any, a: Fake) -> None:
    stream = row.get("stream", False)
    with says(row["send"]) as port:
        bad = Member(name="bad", url=f"http://127.0.0.1:{port}/v1", model="theirs")
        with gateway(settings({"alone": [bad], "m": [bad, a.member]})) as it:
            alone = it.ask("hi", model="alone", stream=stream)
            answer = it.ask("hi", stream=stream)

            if alone.status_code == 200:  # it had begun by then
                assert events(alone)[-1]["error"]["source"] == "engine"
            else:
                error = alone.json()["error"]
                assert (alone.status_code in (502, 503), error["source"]) == (True, "engine")
                assert error["message"].startswith("bad: ")
            assert answer.headers["x-rmlaunch-deployment"] == "a"
            assert text_of(events(answer)) == "012" if stream else answer.json()["choices"]
            assert it.server.answers.held == 0


@contextlib.contextmanager
def says(parts: Sequence[Any]) -> Iterator[int]:
    """A server that says the same to everybody who asks, and then closes; its port."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    connection.settimeout(10)
                    connection.recv(1 << 16)
                    for piece in pieces(parts):
                        connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)


def _sent(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        sender = threading.Thread(target=_send, args=(client, data))
        sender.start()
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                said += piece
        sender.join(5)
        return said


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it was closed: the answer tells
        client.sendall(data)
