"""One check over HTTP: what passes, and what each failure is called."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from engines.base import Endpoint, HttpCheck, KeyFile
from launcher.supervise.probes import Door, Missing, check, count


@contextmanager
def trickling(head: bytes, drop: bytes, every_s: float, heard: list[bytes] | None = None) -> Iterator[Endpoint]:
    """A server that sends `head` and then a drop of its body now and then; `heard` gets the request."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(65536)
            if heard is not None:
                heard.append(request)
            connection.sendall(head)
            with suppress(OSError):  # the client has had enough
                while not done.wait(every_s):
                    connection.sendall(drop)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
    finally:
        done.set()
        thread.join(5)
        listener.close()


def test_a_body_that_never_ends_is_a_failure_in_time() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    began = time.monotonic()
    with trickling(head, b" ", every_s=0.05) as endpoint:
        missing = check(Door(endpoint), HttpCheck("/health"), timeout_s=0.3)

    assert missing is not None
    assert missing.words.startswith("TimeoutError from /health")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    ],
)
def test_a_head_that_never_ends_is_a_failure_in_time(head: bytes, drop: bytes) -> None:
    began = time.monotonic()
    with trickling(head, drop, every_s=0.02) as endpoint:
        missing = check(Door(endpoint), HttpCheck("/health"), timeout_s=0.3)

    assert missing is not None
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("body", "expect", "passes"),
    [
        (b'{"usage": {"completion_tokens": 1}}', "usage.completion_tokens", True),
        (b'{"usage": {"completion_tokens": 0}}', "usage.completion_tokens", False),
        (b'{"data": [{"embedding": [0.0]}]}', "data.0.embedding", True),
        (b'{"data": []}', "data.0.embedding", False),
        (b"not json", "text", False),
        (b"[" * 100_000, "text", False),
    ],
)
def test_an_answer_has_something_in_it(body: bytes, expect: str, passes: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with trickling(head + body, b"", every_s=60) as endpoint:
        missing = check(Door(endpoint), HttpCheck("/ask", "POST", {}, expect), timeout_s=5)

    assert (missing is None) is passes


MODELS = b'{"data": [{"id": "a"}, {"id": "b"}]}'


@pytest.mark.parametrize(
    ("status", "body", "wanted", "missing"),
    [
        (200, MODELS, "b", None),
        (200, MODELS, "c", Missing("/models has 'a', 'b' at data.*.id, and not 'c'", final=True)),
        (200, b'{"data": []}', "c", Missing("/models has nothing at data.*.id, and not 'c'", final=True)),
        (401, b"no key", "b", Missing("401 from /models: no key", final=True)),
        (503, b"loading", "b", Missing("503 from /models: loading", final=False)),
    ],
)
def test_one_of_many_values_is_the_wanted_one(status: int, body: bytes, wanted: str, missing: Missing | None) -> None:
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    with trickling(head + body, b"", every_s=60) as endpoint:
        probe = HttpCheck("/models", expect="data.*.id", among=wanted, final=True)
        assert check(Door(endpoint), probe, timeout_s=5) == missing


def test_a_check_may_go_elsewhere_with_a_key_that_the_server_made(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"management": {"key": "sesame"}}')
    heard: list[bytes] = []
    body = b'{"status": "READY"}'
    with trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" + body, b"", 60, heard) as other:
        probe = HttpCheck("/models/m", expect="status", among="READY", endpoint=other,
                          key=KeyFile(str(keys), "management.key"))  # fmt: skip
        assert check(Door(Endpoint("127.0.0.1", 1)), probe, timeout_s=5) is None

    assert b"Authorization: Bearer sesame\r\n" in heard[0]


def test_a_key_that_the_server_has_not_written_yet_is_waited_for(tmp_path: Path) -> None:
    probe = HttpCheck("/", key=KeyFile(str(tmp_path / "none.json"), "management.key"))

    missing = check(Door(Endpoint("127.0.0.1", 1)), probe, timeout_s=1)

    assert missing is not None
    assert missing.words.startswith("InferenceError from /: the server has written no key 'management.key' to ")
    assert not missing.final


@pytest.mark.parametrize(("value", "counted"), [(b"3", 3.0), (b"many", None)])
def test_a_counter_that_is_no_number_is_none(value: bytes, counted: float | None) -> None:
    body = b"tokens " + value + b"\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with trickling(head + body, b"", every_s=60) as endpoint:
        assert count(Door(endpoint), f"{endpoint.url}/metrics", ("tokens",), timeout_s=5) == counted
