"""What a server that fails in odd ways becomes: always an `InferenceError`, with its words where it has any."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engines.base import Chunk, EmbedRequest, Endpoint, Endpoints, GenerateRequest, InferenceError, Target
from engines.openai_http import OpenAIClient


@contextmanager
def answering(status: int, body: bytes) -> Iterator[Target]:
    """A server that gives the same answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Target(Endpoints(Endpoint("127.0.0.1", server.server_address[1])), "m", timeout_s=5)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error": {"message": "too long"}}', "too long"),
        (400, b'{"error": "bad tensor"}', "bad tensor"),
        (503, b"<html>busy</html>", "busy"),
        (500, b"", "an empty answer"),
        (200, b'{"error": {"message": "inside a 200"}}', "inside a 200"),
        (200, b"<html>hello</html>", "hello"),
        (200, b"{}", "without choices"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(status: int, body: bytes, words: str) -> None:
    client = OpenAIClient()
    with answering(status, body) as target, pytest.raises(InferenceError, match=words):
        list(client.infer(target, GenerateRequest(prompt="a")))
    client.close()


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b'data: {"error": {"message": "half-way"}}\n\n'])
def test_a_stream_without_an_event_is_no_empty_answer(body: bytes) -> None:
    client = OpenAIClient()
    with answering(200, body) as target, pytest.raises(InferenceError, match=r"single event|half-way"):
        list(client.infer(target, GenerateRequest(prompt="a", stream=True)))
    client.close()


def test_embeddings_that_are_refused_inside_a_200_are_an_error() -> None:
    client = OpenAIClient()
    with answering(200, b'{"error": "no embeddings"}') as target, pytest.raises(InferenceError, match="no embeddings"):
        list(client.infer(target, EmbedRequest(("a",))))
    client.close()


def test_nobody_there_is_an_error_that_names_the_address() -> None:
    client = OpenAIClient()
    target = Target(Endpoints(Endpoint("127.0.0.1", 9)), "m", timeout_s=5)
    with pytest.raises(InferenceError, match=r"no answer from http://127.0.0.1:9/v1/completions"):
        list(client.infer(target, GenerateRequest(prompt="a")))
    client.close()


def test_a_kept_connection_that_the_server_drops_is_no_failure() -> None:
    """Two connections: the first answers once and is closed as the second request arrives on it."""
    answer = b'{"choices": [{"text": "hello"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        first, _ = listener.accept()
        with first:
            first.recv(65536)
            first.sendall(head + answer)
            first.recv(1)  # the second request begins; the rest of it is never read
        second, _ = listener.accept()
        with second:
            second.recv(65536)
            second.sendall(head + answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = OpenAIClient()
    target = Target(Endpoints(Endpoint("127.0.0.1", listener.getsockname()[1])), "m", timeout_s=5)

    answers = [list(client.infer(target, GenerateRequest(prompt="a"))) for _ in range(2)]

    thread.join(5)
    listener.close()
    client.close()
    assert answers == [[Chunk("hello")], [Chunk("hello")]]
