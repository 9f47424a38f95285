"""What a server that fails in odd ways becomes: always an `InferenceError`, with its words where it has any."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engines.base import Chunk, EmbedRequest, Endpoint, Endpoints, GenerateRequest, InferenceError, Target
from engines.json_http import JsonHttp
from engines.openai_http import OpenAIClient


@dataclass
class Asked:
    """What came to a server."""

    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def answering(
    status: int, body: bytes, *, location: str = "", asked: Asked | None = None, tls: Path | None = None, key: str = ""
) -> Iterator[Target]:
    """A server that gives the same answer to everything; `tls` is its certificate with the private key."""
    seen = asked or Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.paths.append(self.path)
            seen.headers.append(dict(self.headers))
            seen.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = Endpoint("127.0.0.1", server.server_address[1], "https" if tls else "http")
    try:
        yield Target(Endpoints(endpoint), "m", timeout_s=5, api_key=key or None)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error": {"message": "too long"}}', "too long"),
        (400, b'{"error": "bad tensor"}', "bad tensor"),
        (404, b'{"code": 404, "type": "ModelNotFoundException", "message": "no model x"}', "^no model x$"),
        (400, b'{"detail": "pinned to m"}', "^pinned to m$"),
        (422, b'{"detail": [{"loc": ["body", 1], "msg": "not JSON", "input": "secret"}]}', r"^body\.1: not JSON$"),
        (400, b'{"error": {"message": "' + b"x" * 5000 + b'"}}', "^x{2000}$"),
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


def test_bytes_are_sent_and_answered_as_they_are() -> None:
    asked, client = Asked(), JsonHttp()
    with answering(200, b"\x93NUMPY\xff", asked=asked) as target:
        answer = client.post_bytes(target, "/predictions/m", b"PK\x03\x04\x00", "application/octet-stream")
    client.close()

    assert answer == b"\x93NUMPY\xff"
    assert asked.bodies == [b"PK\x03\x04\x00"]
    assert asked.headers[0]["Content-Type"] == "application/octet-stream"


def test_a_refusal_of_bytes_is_told_in_the_servers_words() -> None:
    client = JsonHttp()
    with (
        answering(503, b'{"message": "no worker"}') as target,
        pytest.raises(InferenceError, match="no worker") as info,
    ):
        client.post_bytes(target, "/predictions/m", b"x", "application/octet-stream")
    client.close()

    assert info.value.status == 503


def test_lines_of_json_are_yielded_one_by_one() -> None:
    client = JsonHttp()
    with answering(200, b'{"text": "a"}\n\n{"text": "b"}') as target:
        assert list(client.lines(target, "/x", {})) == [{"text": "a"}, {"text": "b"}]
    client.close()


def test_an_error_among_lines_ends_them() -> None:
    client = JsonHttp()
    with answering(200, b'{"text": "a"}\n{"error": "worker died"}\n{"text": "b"}\n') as target:
        lines = client.lines(target, "/x", {})
        assert next(lines) == {"text": "a"}
        with pytest.raises(InferenceError, match="worker died"):
            next(lines)
    client.close()


def test_an_error_that_is_null_is_none() -> None:
    client = JsonHttp()
    with answering(200, b'{"error": null, "text": "a"}') as target:
        assert client.post(target, "/x", {}) == {"error": None, "text": "a"}
        assert list(client.lines(target, "/x", {})) == [{"error": None, "text": "a"}]
    client.close()


def test_a_redirect_is_told_and_the_key_is_not_taken_there() -> None:
    asked, client = Asked(), JsonHttp()
    with (
        answering(200, b"{}", asked=asked) as elsewhere,
        answering(307, b"", location=f"{elsewhere.endpoints.http.url}/v2", key="k") as target,
        pytest.raises(InferenceError, match=f"answers 307 and points to {elsewhere.endpoints.http.url}/v2"),
    ):
        client.post(target, "/v1", {})
    client.close()

    assert asked.paths == []


def test_only_our_own_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\nmachine model.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    asked, client = Asked(), JsonHttp(proxies=True)
    with answering(200, b"{}", asked=asked) as target, answering(200, b"{}", asked=asked, key="sesame") as locked:
        client.post(target, "/x", {})
        client.post(locked, "/x", {})
        monkeypatch.setenv("http_proxy", target.endpoints.http.url)
        remote = JsonHttp(proxies=True)
        remote.post(Target(Endpoints(Endpoint("model.test", 80)), "m", timeout_s=5), "/x", {})
        remote.close()
    client.close()

    assert [headers.get("Authorization") for headers in asked.headers] == [None, "Bearer sesame", None]


def test_a_proxy_leads_to_other_machines_and_never_to_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    direct, proxied = Asked(), Asked()
    with answering(200, b"{}", asked=proxied) as proxy, answering(200, b"{}", asked=direct) as target:
        monkeypatch.setenv("http_proxy", proxy.endpoints.http.url)
        for client in (JsonHttp(), JsonHttp(proxies=True)):
            client.post(target, "/near", {})
            client.close()
        client = JsonHttp(proxies=True)
        client.post(Target(Endpoints(Endpoint("model.test", 80, path="/base")), "m", timeout_s=5), "/far", {})
        client.close()

    assert direct.paths == ["/near", "/near"]
    assert proxied.paths == ["http://model.test:80/base/far"]


def test_a_certificate_must_be_one_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req",  # noqa: S607  (wherever it lies)
         "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", certificate, "-out", tmp_path / "c"],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate.write_text(certificate.read_text() + (tmp_path / "c").read_text())
    with answering(200, b'{"a": 1}', tls=certificate) as target:
        stranger = JsonHttp()
        with pytest.raises(InferenceError, match="CERTIFICATE_VERIFY_FAILED"):
            stranger.post(target, "/x", {})
        stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c"))
        friend = JsonHttp()
        assert friend.post(target, "/x", {}) == {"a": 1}
        friend.close()
