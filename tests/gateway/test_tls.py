"""Servers that are reached through TLS."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from launcher.config.gateway import Member
from tests.gateway.harness import events, gateway, settings, text_of

WHOLE = {
    "model": "theirs",
    "choices": [{"message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
}
PIECE = {"model": "theirs", "choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("stream"):
            body, kind = f"data: {json.dumps(PIECE)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream"
        else:
            body, kind = json.dumps(WHOLE).encode(), "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not in the tests' output."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A handshake that the client refuses is what is tested."""


@contextlib.contextmanager
def server(authority: trustme.CA, name: str) -> Iterator[Member]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with Server(("127.0.0.1", 0), Answers) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
        serving = threading.Thread(target=listening.serve_forever, args=(0.02,))
        serving.start()
        yield Member(name="a", url=f"https://localhost:{listening.server_port}/v1", model="theirs")
        listening.shutdown()
        serving.join(5)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """One that this machine trusts."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def test_a_server_behind_tls_answers_like_any_other(authority: trustme.CA) -> None:
    with server(authority, "localhost") as a, gateway(settings({"m": [a]})) as it:
        answers = [it.ask("hi") for _ in range(3)]

        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[-1].json()["model"] == "m"
        assert text_of(events(it.ask("hi", stream=True))) == "Paris"


@pytest.mark.usefixtures("authority")
def test_a_server_that_nobody_vouches_for_is_not_spoken_to() -> None:
    with server(trustme.CA(), "localhost") as a, gateway(settings({"m": [a]}, {"hold_s": 0})) as it:
        answer = it.ask("hi")

        assert answer.status_code == 502
        assert "certificate verify failed" in answer.json()["error"]["message"]


def test_a_server_with_somebody_elses_name_is_not_spoken_to(authority: trustme.CA) -> None:
    with server(authority, "elsewhere.example") as a, gateway(settings({"m": [a]}, {"hold_s": 0})) as it:
        answer = it.ask("hi")

        assert answer.status_code == 502
        assert "certificate is not valid for 'localhost'" in answer.json()["error"]["message"]
