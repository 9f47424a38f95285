"""One check over HTTP: what passes, and what each failure is called."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from engines.base import Endpoint, HttpCheck
from launcher.probes import check


@contextmanager
def trickling(head: bytes, drop: bytes, every_s: float) -> Iterator[Endpoint]:
    """A server that sends `head` and then a drop of its body now and then."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
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
        missing = check(endpoint, HttpCheck("/health"), timeout_s=0.3)

    assert missing.startswith("TimeoutError from /health")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("body", "expect", "passes"),
    [
        (b'{"usage": {"completion_tokens": 1}}', "usage.completion_tokens", True),
        (b'{"usage": {"completion_tokens": 0}}', "usage.completion_tokens", False),
        (b'{"data": [{"embedding": [0.0]}]}', "data.0.embedding", True),
        (b'{"data": []}', "data.0.embedding", False),
        (b"not json", "text", False),
    ],
)
def test_an_answer_has_something_in_it(body: bytes, expect: str, passes: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with trickling(head + body, b"", every_s=60) as endpoint:
        missing = check(endpoint, HttpCheck("/ask", "POST", {}, expect), timeout_s=5)

    assert (missing == "") is passes
