"""What goes wrong behind the gateway, in front of it and between: the client always learns it, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from launcher.config.gateway import Member
from launcher.gateway.upstream import Connection
from tests.gateway.harness import Fake, events, fake, gateway, settings, text_of, until
from tests.supervision import free_port

GONE = Member(name="gone", url="http://127.0.0.1:1/v1", model="theirs")


def test_a_server_that_dies_in_the_middle_of_a_stream_is_told_in_it() -> None:
    with fake() as server, gateway(settings({"m": [server.member]})) as it:
        said = events(it.ask("die mid-stream", stream=True))

        assert text_of(said) == "01"
        assert said[-1]["error"]["source"] == "engine"
        assert "a: it closed the connection" in said[-1]["error"]["message"]
        assert "[DONE]" not in said


def test_a_stream_that_ends_in_good_order_before_the_text_does_is_a_failure_too(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        said = events(it.ask("no done", stream=True))

        assert text_of(said) == "012"
        assert said[-1]["error"]["message"] == "a: it ended the stream before the text did"


def test_a_stream_without_a_word_for_too_long_ends_with_an_error(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"timeout_s": 0.3})) as it:
        said = events(it.ask("hang mid-stream", stream=True))

        assert said[-1]["error"]["code"] == "timeout"


def test_a_server_that_hangs_is_given_up_and_so_is_the_request(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"timeout_s": 0.3})) as it:
        left = a.told()["left"]

        answer = it.ask("hang")

        assert answer.status_code == 504
        assert answer.json()["error"] == {
            "message": "a: not a byte of its answer came for 0.3 s", "type": "server_error", "param": None,
            "code": "timeout", "source": "engine",
        }  # fmt: skip
        until(lambda: bool(a.told()["left"] == left + 1))


def test_a_refused_connection_goes_to_the_next(a: Fake) -> None:
    with gateway(settings({"m": [GONE, a.member]})) as it:
        answer = it.ask("hi")

        assert answer.status_code == 200
        assert answer.headers["x-rmlaunch-deployment"] == "a"


def test_where_nobody_is_there_the_client_learns_who_was_tried() -> None:
    with gateway(settings({"m": [GONE]}, {"hold_s": 0})) as it:
        answer = it.ask("hi")

        assert answer.status_code == 502
        assert answer.json()["error"]["message"].startswith("gone: no connection to 127.0.0.1:1 ")


@pytest.mark.parametrize("fault", ["half", "close", "garbage", "status 503", "status 500"])
def test_what_one_server_fails_another_answers(fault: str, a: Fake) -> None:
    with fake("bad") as bad, gateway(settings({"m": [bad.member, a.member]})) as it:
        answer = it.ask(fault)

        assert [request["body"]["messages"][0]["content"] for request in bad.asked] == [fault]
        # The fake does as it is told, whichever it is: what counts is that both were asked.
        assert [request["body"]["messages"][0]["content"] for request in a.asked][-1] == fault
        assert answer.json()["error"]["source"] == "engine"
        assert answer.status_code == {"status 503": 503, "status 500": 500}.get(fault, 502)


def test_a_request_that_is_refused_is_nobody_elses(a: Fake, b: Fake) -> None:
    with gateway(settings({"m": [a.member, b.member]})) as it:
        before = len(b.asked)

        answer = it.ask("status 422")

        assert (answer.status_code, len(b.asked)) == (422, before)
        assert answer.json()["error"] == {
            "message": "as asked by a", "type": "invalid_request_error", "param": None, "code": "as_asked",
            "source": "engine",
        }  # fmt: skip


def test_retry_after_is_passed_on(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        assert it.ask("status 429").headers["retry-after"] == "7"


def test_a_killed_replica_loses_no_request_under_load() -> None:
    with fake("a") as first, fake("b") as second:
        members = [first.member, second.member]
        with gateway(settings({"m": members}, {"strategy": "round_robin"})) as it, ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(it.ask, f"slow 0.0{number % 5}") for number in range(200)]
            until(lambda: sum(answer.done() for answer in answers) > 40)
            first.kill()

            assert [answer.result().status_code for answer in answers] == [200] * 200
            assert len(second.asked) > 100


def test_a_client_that_leaves_takes_its_request_along(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        left = a.told()["left"]
        answer = it.ask("slow 0.02 pieces 1000", stream=True)
        assert next(answer.iter_lines()).startswith(b"data: ")

        answer.close()

        until(lambda: bool(a.told()["left"] == left + 1))
        assert it.server.table.routes["m"].codes[499] == 1
        assert it.server.table.replicas["a"].in_flight == 0


def test_a_client_that_leaves_while_it_waits_is_forgotten(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"max_concurrency": 1})) as it:
        first = it.ask("slow 0.02 pieces 1000", stream=True)
        with socket.create_connection(("127.0.0.1", it.port)) as waits:
            waits.sendall(_post(b'{"model": "m", "messages": [{"role": "user", "content": "never asked"}]}'))
            until(lambda: len(it.server.admission.waiting) == 1)
        until(lambda: not it.server.admission.waiting)
        first.close()

        assert it.ask("next").status_code == 200
        assert "never asked" not in json.dumps(a.asked)


def test_a_client_that_does_not_read_slows_the_server_down_and_is_given_up(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, client_timeout_s=0.5)) as it:
        with socket.create_connection(("127.0.0.1", it.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = {"model": "m", "stream": True,
                    "messages": [{"role": "user", "content": "pieces 100000 big 10000"}]}  # fmt: skip
            client.sendall(_post(json.dumps(body).encode()))
            until(lambda: bool(it.server.connections))
            (connection,) = it.server.connections
            until(lambda: connection.paused_since is not None)
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 4 << 20
            until(lambda: not it.server.connections)
        assert it.server.table.replicas["a"].in_flight == 0


def test_a_thousand_idle_connections_are_in_nobodys_way(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        idle = [socket.create_connection(("127.0.0.1", it.port)) for _ in range(1000)]
        until(lambda: len(it.server.connections) >= 1000)

        assert it.ask("hi").status_code == 200
        it.server.table.settings = dataclasses.replace(it.server.table.settings, keep_alive_s=0.1)
        until(lambda: not it.server.connections)  # and they do not stay for ever
        for one in idle:
            one.close()


def test_a_request_that_does_not_come_to_its_end_is_given_up(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, request_timeout_s=0.2)) as it:
        answer = _raw(it.port, b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")

        assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_open_breaker_leaves_a_server_alone_until_it_is_well_again(a: Fake) -> None:
    port = free_port()
    sick = Member(name="sick", url=f"http://127.0.0.1:{port}/v1", model="theirs")
    with gateway(settings({"m": [sick, a.member]})) as it:
        assert [it.ask("hi").headers["x-rmlaunch-deployment"] for _ in range(5)] == ["a"] * 5
        assert it.server.table.replicas["sick"].requests == 3

        with fake("sick", port):
            until(lambda: it.ask("hi").headers["x-rmlaunch-deployment"] == "sick")


# ------------------------------------------------------------------------------------------- what clients may not do


def test_a_body_of_50_mb_is_too_large_and_the_client_gets_to_read_it(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * (50 << 20)}]})

        declared = requests.post(f"{it.url}/v1/chat/completions", data=body, timeout=20)
        chunked = requests.post(f"{it.url}/v1/chat/completions", data=iter([body.encode()]), timeout=20)

        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert answer.json()["error"]["message"].startswith("a request's body has at most 32 MiB")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"nul", b"[" * 100_000, b'{"model": "m", "messages": "\xff"}'], ids=repr
)
def test_broken_json_is_refused(body: bytes, a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        answer = requests.post(f"{it.url}/v1/chat/completions", data=body, timeout=5)

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_json"


def test_an_unknown_model_is_answered_with_those_that_there_are(a: Fake) -> None:
    with gateway(settings({"chat-main": [a.member], "embed": [a.member]})) as it:
        answer = it.ask("hi", model="chat-mian")

        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "model 'chat-mian' not found; did you mean 'chat-main'? there are: chat-main, embed",
            "type": "not_found_error", "param": None, "code": "model_not_found", "source": "gateway",
        }  # fmt: skip


SMUGGLED = {
    "two lengths": b"content-length: 4\r\ncontent-length: 5\r\n",
    "length and chunks": b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
    "chunks that are none": b"transfer-encoding: xchunked\r\n",
    "a space before the colon": b"content-length : 4\r\n",
    "a folded header": b"x-a: b\r\n content-length: 4\r\n",
    "a length that is none": b"content-length: 4x\r\n",
    "a negative length": b"content-length: -1\r\n",
    "a bare line feed": b"x-a: b\nx-c: d\r\n",
    "a null": b"x-a: \0\r\n",
    "two hosts": b"host: localhost\r\n",
}


@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED)
def test_what_could_be_read_in_two_ways_is_not_read_at_all(headers: bytes, a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        before = len(a.asked)
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + headers + b"\r\n"

        answer = _raw(it.port, request + b"0\r\n\r\nPOST /models/a/unload HTTP/1.1\r\nhost: localhost\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1  # and nothing that came with it
        assert len(a.asked) == before


def test_headers_of_a_client_do_not_reach_the_server(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        it.ask("headers", headers={"x-secret": "1", "cookie": "2", "authorization": "Bearer 3", "x-request-id": "4"})

        headers = a.asked[-1]["headers"]
        assert sorted(headers) == ["content-length", "content-type", "host", "x-request-id"]


@pytest.mark.parametrize(
    "path",
    ["/v1/../v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/", "/v1/chat/completions/../../x",
     "/%761/chat/completions", "/api/api/v1/chat/completions", "/v1/chat/completions%00", "/../../etc/passwd",
     "/models/..%2f..%2fetc/log", "//127.0.0.1:1/v1/models", "http://127.0.0.1:1/v1/models"],
)  # fmt: skip
def test_paths_lead_nowhere_but_where_they_say(path: str, a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        method = b"GET" if "log" in path or "models" in path else b"POST"
        answer = _raw(
            it.port, b"%b %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % (method, path.encode())
        )

        assert answer.split()[1] in (b"404", b"400")


def test_too_many_and_too_long_headers_are_refused(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        many = b"".join(b"x-%d: 1\r\n" % number for number in range(200))
        for headers in (many, b"x-a: " + b"x" * 100_000 + b"\r\n"):
            assert _raw(it.port, b"GET /health HTTP/1.1\r\n" + headers + b"\r\n").startswith(b"HTTP/1.1 431 ")


def test_requests_that_come_before_their_answers_are_answered_in_turn(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        one = _post(b'{"model": "m", "messages": [{"role": "user", "content": "slow 0.05"}]}')
        answer = _raw(it.port, one * 3 + b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")

        assert answer.count(b"HTTP/1.1 200 OK") == 4
        assert answer.rstrip().endswith(b'{"status": "ok"}')


def test_an_upgrade_is_passed_over_and_nothing_after_it_is_read(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        request = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"

        answer = _raw(it.port, request + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_an_upgrade_with_a_body_is_refused_and_says_how_to_ask(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        for _ in range(2):
            answer = it.ask("hi", headers={"connection": "upgrade", "upgrade": "h2c"})

            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith("only HTTP/1.1 is spoken here")


def test_a_connection_that_is_lost_as_soon_as_it_is_made_is_told_of(a: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Connection, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.abort()

    monkeypatch.setattr(Connection, "connection_made", lost)
    with gateway(settings({"m": [a.member]}, {"hold_s": 0})) as it:
        answer = it.ask("hi")

        assert (answer.status_code, answer.json()["error"]["source"]) == (502, "engine")
        assert "(it was closed at once)" in answer.json()["error"]["message"]


def test_a_client_that_waits_for_a_word_before_it_sends_gets_one(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, socket.create_connection(("127.0.0.1", it.port)) as client:
        body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        )
        client.settimeout(5)
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert _rest(client).startswith(b"HTTP/1.1 200 OK")


def test_http_1_0_gets_an_answer_that_ends_with_the_connection(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        answer = _raw(
            it.port, b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert rest.endswith(b"data: [DONE]\n\n")


def _post(body: bytes) -> bytes:
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        sender = threading.Thread(target=_send, args=(client, request))
        sender.start()
        answer = _rest(client)
        sender.join(5)
        return answer


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it was closed: the answer tells
        client.sendall(data)


def _rest(client: socket.socket) -> bytes:
    said = b""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            piece = client.recv(1 << 16)
        except ConnectionResetError:
            break
        if not piece:
            break
        said += piece
    return said


# ----------------------------------------------------------------------------------------- what a review has found


def test_a_server_that_fails_is_asked_once_while_another_is_on_its_way(a: Fake) -> None:
    with gateway(settings({"m": [a.member, Member("b")]}, {"hold_s": 0.5})) as it:
        it.server.table.replica("b").on_its_way = True
        before = len(a.asked)

        answer = it.ask("status 500")

        assert (answer.status_code, len(a.asked)) == (500, before + 1)


def test_as_many_as_wait_are_answered_when_nobody_is_there_any_more() -> None:
    limits = {"max_concurrency": 1, "queue": 400, "retries": 0, "hold_s": 0}
    with (
        fake("lone") as lone,
        gateway(settings({"m": [lone.member]}, limits)) as it,
        ThreadPoolExecutor(300) as pool,
    ):
        answers = [pool.submit(it.ask, "slow 30") for _ in range(300)]
        until(lambda: len(it.server.admission.waiting) == 299, 15)
        lone.kill()

        assert {answer.result().status_code for answer in answers} <= {502, 503}
        assert (it.server.table.routes["m"].gate.active, len(it.server.exchanges)) == (0, 0)


def test_a_bug_of_ours_costs_one_request_and_not_the_clock(a: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise KeyError("a bug")

    with gateway(settings({"m": [a.member]}, {"timeout_s": 0.3})) as it:
        with monkeypatch.context() as patch:
            patch.setattr("launcher.gateway.attempt.whole", broken)
            assert it.ask("hi").status_code == 500
            patch.setattr("launcher.gateway.routing.Upstream.head", broken)
            assert it.ask("hi").status_code == 500
        assert it.ask("hi").status_code == 200
        assert it.ask("hang").status_code == 504  # the clock still looks
        assert (it.server.table.routes["m"].gate.active, it.server.table.replicas["a"].in_flight) == (0, 0)


def test_half_a_character_in_an_error_reaches_the_client(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        body = b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'
        answer = requests.post(f"{it.url}/v1/chat/completions", data=body, timeout=5)

        assert answer.status_code in (200, 400)


def test_a_word_to_send_does_not_come_in_the_middle_of_an_answer(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        first = _post(
            b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "slow 0.05 pieces 6"}]}'
        )
        head = b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\nconnection: close\r\n"
        second = head + b"content-length: 2\r\n\r\n{}"

        answer = _raw(it.port, first + second)

        assert b"100 Continue" not in answer
        assert answer.count(b"HTTP/1.1 ") == 2


def test_a_header_after_the_body_is_none(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        body = b'{"model": "m", "messages": [{"role": "user", "content": "trailer"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        chunks = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(body), body)
        answer = _raw(it.port, head + chunks + b"x-request-id: smuggled\r\norigin: https://evil.example\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 200 ")
        assert "x-request-id" not in a.asked[-1]["headers"]


def test_an_upload_may_take_longer_than_an_idle_connection_is_kept(a: Fake) -> None:
    with (
        gateway(settings({"m": [a.member]}, keep_alive_s=0.3)) as it,
        socket.create_connection(("127.0.0.1", it.port)) as client,
    ):
        whole = _post(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
        time.sleep(0.2)
        client.sendall(whole[:-5])
        time.sleep(0.4)
        client.sendall(whole[-5:])
        client.settimeout(5)

        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


class Silent:
    """A server that answers the first request on each connection, and closes it after the second, without a byte, when
    `after_s` have passed; it counts what it was asked."""

    def __init__(self, after_s: float) -> None:
        self.asked = 0
        self._after_s = after_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.member = Member(
            name="silent", url=f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1", model="theirs"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for number in range(2):
                if not connection.recv(1 << 16):
                    return
                self.asked += 1
                if number:
                    time.sleep(self._after_s)
                    return
                body = b'{"model": "theirs", "choices": []}'
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(
    ("after_s", "retries", "status", "asked"),
    [(0.3, 2, 502, 2), (0.3, 0, 502, 2), (0.0, 2, 200, 3), (0.0, 0, 502, 2)],
)
def test_a_request_on_a_kept_connection_is_sent_again_only_where_that_was_closed_at_once(
    after_s: float, retries: int, status: int, asked: int
) -> None:
    with (
        contextlib.closing(Silent(after_s)) as silent,
        gateway(settings({"m": [silent.member]}, {"retries": retries, "hold_s": 0})) as it,
    ):
        assert it.ask("hi").status_code == 200

        answer = it.ask("hi")

        assert (answer.status_code, silent.asked) == (status, asked)


def test_one_clients_long_requests_close_a_server_to_nobody(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"timeout_s": 0.3})) as it, ThreadPoolExecutor(3) as pool:
        long = [pool.submit(it.ask, "hang") for _ in range(3)]

        assert [answer.result().status_code for answer in long] == [504] * 3
        assert it.ask("hi").status_code == 200


@pytest.mark.parametrize("fault", ["no done", "hang mid-stream"])
def test_what_a_client_has_made_of_a_stream_closes_a_server_to_nobody(fault: str, a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"timeout_s": 0.2})) as it:
        for _ in range(3):
            events(it.ask(fault, stream=True))

        assert it.ask("hi").status_code == 200


def test_an_answer_may_pause_after_its_head_and_between_its_pieces(a: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.gateway.attempt._DRY_S", 0.1)
    with gateway(settings({"m": [a.member]})) as it:
        said = events(it.ask("slow 0.4 pieces 2", stream=True))

        assert text_of(said) == "01"
    whole = slow_head(b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n", b'{"choices": []}')
    with whole as member, gateway(settings({"m": [member]})) as it:
        assert it.ask("hi").json() == {"choices": []}


def test_a_head_that_does_not_come_to_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.gateway.attempt._DRY_S", 0.1)
    half = slow_head(b"HTTP/1.1 200 OK\r\nx-a", b": 1\r\ncontent-length: 0\r\n\r\n")
    with half as member, gateway(settings({"m": [member]})) as it:
        answer = it.ask("hi")

        assert answer.status_code == 502
        assert "the head of its answer was not whole" in answer.json()["error"]["message"]


@contextlib.contextmanager
def slow_head(first: bytes, rest: bytes) -> Iterator[Member]:
    """A server that says `first`, and `rest` half a second later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(first)
                time.sleep(0.5)
                connection.sendall(rest)
                connection.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield Member(name="slow", url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="theirs")
