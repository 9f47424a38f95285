"""What clients may take of the gateway: memory, connections, places in a queue. One client's share is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from engines.dialect import Call, OpenAI
from launcher.gateway.settings import Key, hashed
from tests.gateway.harness import Fake, Running, gateway, settings, until

ALICE, BOB = "the-key-of-alice-0123", "the-key-of-bob-0123456"
KEYS = [Key("alice", hashed(ALICE, "")), Key("bob", hashed(BOB, ""))]
MIB = 1 << 20


@contextlib.contextmanager
def connected(it: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", it.port)) as client:
        client.settimeout(10)
        yield client


def head(length: int, key: str = "", more: bytes = b"") -> bytes:
    sent = b"authorization: Bearer %b\r\n" % key.encode() if key else b""
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n%b%bcontent-length: %d\r\n\r\n" % (
        sent,
        more,
        length,
    )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ------------------------------------------------------------------------------------------------------------ memory


def test_a_body_without_a_key_is_refused_before_a_byte_of_it_has_come(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, keys=KEYS)) as it, connected(it) as client:
        client.sendall(head(31 * MIB))

        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert it.server.bodies.held == 0


def test_nobody_without_a_key_is_told_to_go_on(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, keys=KEYS)) as it, connected(it) as client:
        client.sendall(head(10, more=b"expect: 100-continue\r\n"))

        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_body_for_what_takes_none_is_not_kept(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, keys=KEYS)) as it, connected(it) as client:
        client.sendall(head(MIB).replace(b"/v1/chat/completions", b"/health") + b"x" * (MIB - 1))
        until(lambda: any(one.reading_since is not None for one in it.server.connections))

        assert it.server.bodies.held == 0
        client.sendall(b"x")
        assert client.recv(1000).startswith(b"HTTP/1.1 405 ")


def test_bodies_hold_no_more_than_they_may_and_all_of_it_comes_back(a: Fake) -> None:
    made = settings({"m": [a.member]}, max_body_bytes=MIB, max_held_bytes=6 * MIB)
    with gateway(made) as it, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(it)) for _ in range(3)]
        for client in clients[:2]:
            client.sendall(head(MIB) + b" " * (MIB - 1))
        until(lambda: it.server.bodies.held > 5.9 * MIB)

        clients[2].sendall(head(MIB) + b" " * (MIB - 1))
        answer = clients[2].recv(1000)

        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"gateway.max_held_mib" in answer
        clients[0].close()
        until(lambda: it.server.bodies.held < 3.1 * MIB)
        assert it.ask("hi").status_code == 200
        clients[1].sendall(b"x")
        assert clients[1].recv(1000).startswith(b"HTTP/1.1 400 ")
        until(lambda: it.server.bodies.held == 0)


def test_one_key_of_several_leaves_the_others_room(a: Fake) -> None:
    made = settings({"m": [a.member]}, keys=KEYS, max_body_bytes=MIB, max_held_bytes=12 * MIB)
    with gateway(made) as it, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(it)) for _ in range(3)]
        for client in clients:
            client.sendall(head(MIB, ALICE) + b" " * (MIB - 1))

        assert any(_answered(client, b"HTTP/1.1 429 ") for client in clients)
        assert it.ask("hi", headers=bearer(BOB)).status_code == 200


def _answered(client: socket.socket, start: bytes) -> bool:
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        return client.recv(1000).startswith(start)
    return False


def test_a_text_that_takes_four_bytes_for_each_letter_is_counted_so(a: Fake) -> None:
    with (
        gateway(settings({"m": [a.member]}, max_body_bytes=MIB, max_held_bytes=6 * MIB)) as it,
        connected(it) as client,
    ):
        client.sendall(head(MIB) + b'{"model": "m", "prompt": "' + b"x" * (MIB // 2))
        until(lambda: it.server.bodies.held > 1.4 * MIB)
        client.sendall("🌊".encode())

        until(lambda: it.server.bodies.held > 2.9 * MIB)


def test_heads_that_do_not_come_to_their_end_are_bounded_together(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, contextlib.ExitStack() as stack:
        it.server.heads.limit = 100_000
        clients = [stack.enter_context(connected(it)) for _ in range(3)]
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 45_000)

        assert any(_answered(client, b"HTTP/1.1 503 ") for client in clients)
        assert it.ask("hi").status_code == 200
        for client in clients:
            client.close()
        until(lambda: it.server.heads.held == 0)


def test_who_reads_no_answers_gets_no_more_of_them(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, connected(it) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(lambda: len(it.server.connections) == 1)
        (connection,) = it.server.connections
        asked = 0
        while connection.paused_since is None:
            assert asked < 100_000
            client.sendall(b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"x" * 200) * 16)
            asked += 16
            until(lambda asked=asked: it.server.refusals[404] == asked or connection.paused_since is not None, 20)  # type: ignore[misc]

        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < MIB


def test_a_revoked_key_does_not_finish_its_body(a: Fake) -> None:
    made = settings({"m": [a.member]}, keys=KEYS)
    with gateway(made) as it, connected(it) as client:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
        client.sendall(head(len(body), ALICE) + body[:-1])
        until(lambda: it.server.bodies.held > 0)
        it.do(lambda: it.server.use(dataclasses.replace(made, keys=KEYS[1:]), {}))
        client.sendall(body[-1:])

        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")
        until(lambda: it.server.bodies.held == 0)


# ------------------------------------------------------------------------------------------------------- connections


def test_connections_that_ask_for_nothing_give_way_the_longest_first(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, max_connections=20)) as it, contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(it))
        until(lambda: len(it.server.connections) == 1)
        it.server.now += 1.0
        for _ in range(60):
            stack.enter_context(connected(it))

        assert first.recv(100) == b""
        until(lambda: len(it.server.connections) <= 21)
        assert it.ask("hi").status_code == 200


def test_heads_that_are_begun_and_not_ended_give_way_too(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, max_connections=20)) as it, contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connected(it)).sendall(b"GET /health HTTP/1.1\r\n")

        until(lambda: len(it.server.connections) <= 21)
        assert it.ask("hi").status_code == 200


def test_a_probe_is_answered_while_every_place_is_taken(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, max_connections=16)) as it, ThreadPoolExecutor(16) as pool:
        busy = [pool.submit(it.ask, "slow 1") for _ in range(16)]
        until(lambda: len(it.server.exchanges) == 16)

        assert requests.get(f"{it.url}/health", timeout=5).status_code == 200
        refused = it.ask("hi")

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert {one.result().status_code for one in busy} == {200}


# ------------------------------------------------------------------------------------------------------------- turns


def test_one_keys_many_requests_leave_another_its_turn(a: Fake) -> None:
    limits = {"max_concurrency": 1, "queue": 8}
    with gateway(settings({"m": [a.member]}, limits, keys=KEYS)) as it, ThreadPoolExecutor(12) as pool:
        many = [pool.submit(it.ask, "slow 0.2", headers=bearer(ALICE)) for _ in range(9)]
        until(lambda: len(it.server.admission.waiting) == 8)

        assert it.ask("hi", headers=bearer(BOB)).status_code == 200
        assert sum(answer.done() for answer in many) <= 3
        statuses = sorted(answer.result().status_code for answer in many)
        assert statuses == [200] * 8 + [429]


class Explodes(OpenAI):
    """A dialect with a bug, which one client has found."""

    def request(self, call: Call) -> tuple[str, bytes]:
        if b"explode" in call.body:
            raise RecursionError("of the other one")
        return super().request(call)


def test_one_requests_trouble_is_nobody_elses(a: Fake) -> None:
    limits = {"max_concurrency": 1, "timeout_s": 5.0}
    with gateway(settings({"m": [a.member]}, limits)) as it, ThreadPoolExecutor(4) as pool:
        replica = it.server.table.replicas["a"]
        assert replica.upstream is not None
        replica.upstream = dataclasses.replace(replica.upstream, dialect=Explodes("theirs", prefix=""))
        victim = pool.submit(it.ask, "slow 0.3")
        until(lambda: len(it.server.exchanges) == 1)
        culprit = pool.submit(it.ask, "explode")
        until(lambda: len(it.server.admission.waiting) == 1)
        next_one = pool.submit(it.ask, "hi")

        assert victim.result().status_code == 200
        assert culprit.result().status_code == 500
        assert next_one.result().status_code == 200
        assert it.server.table.routes["m"].gate.active == 0


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["hidden", "not-there"])
def test_a_key_does_not_learn_whether_a_name_is_there(name: str, a: Fake) -> None:
    keys = [dataclasses.replace(KEYS[0], routes=["m"]), KEYS[1]]
    with gateway(settings({"m": [a.member], "hidden": [a.member]}, keys=keys)) as it:
        answer = it.ask("hi", model=name, headers=bearer(ALICE))

        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"model {name!r} not found; there are: m"


def test_what_is_large_and_honest_is_let_through(a: Fake) -> None:
    parameters = {f"p{number}": {"type": "string", "enum": ["a", "b"]} for number in range(20)}
    function = {"name": "f", "parameters": {"type": "object", "properties": parameters, "required": [*parameters]}}
    many: list[dict[str, Any]] = [
        {"tools": [{"type": "function", "function": function}] * 300},
        {"messages": [{"role": "user", "content": "[a], {b}, (c) "}] * 2000},
        {"messages": [{"role": "user", "content": "def f(x): return {x: [1, 2, (3,)]}\n" * 100_000}]},
        {"grammar": 'value ::= object | "[" ws ( value ("," ws value)* )? "]" ws\n' * 60},
    ]
    with gateway(settings({"m": [a.member]})) as it:
        for fields in many:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
            assert requests.post(f"{it.url}/v1/chat/completions", json=body, timeout=20).status_code == 200
        tokens = {"model": "m", "input": [list(range(150))] * 2000}
        assert requests.post(f"{it.url}/v1/embeddings", json=tokens, timeout=20).status_code == 200


def test_bodies_that_nobody_reads_give_way_too(a: Fake) -> None:
    """They are begun and not ended: of what is refused, of what reads no body, and behind an answer."""
    begun = [
        head(60_000),
        head(MIB * 20).replace(b"/v1/chat/completions", b"/nothing"),
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /health HTT",
    ]
    with gateway(settings({"m": [a.member]}, keys=KEYS, max_connections=20)) as it, contextlib.ExitStack() as stack:
        for number in range(60):
            with contextlib.suppress(OSError):
                stack.enter_context(connected(it)).sendall(begun[number % 3])

        until(lambda: len(it.server.connections) <= 21)
        assert requests.get(f"{it.url}/health", timeout=5).status_code == 200
        assert it.ask("hi", headers=bearer(BOB)).status_code == 200


def test_who_reads_an_answer_is_not_idle(a: Fake) -> None:
    size = 20 * MIB
    with gateway(settings({"m": [a.member]}, max_connections=16)) as it, connected(it) as client:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"big {size}"}]}).encode()
        client.sendall(head(len(body)) + body)
        until(lambda: it.server.answers.held > 10 * MIB)
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(connected(it))
            said = 0
            while said < size:
                piece = client.recv(MIB)
                assert piece
                said += len(piece)
        until(lambda: it.server.answers.held == 0)


def test_a_word_to_send_a_body_that_nobody_reads_is_refused(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, keys=KEYS)) as it, connected(it) as client:
        client.sendall(head(10, more=b"expect: 100-continue\r\n").replace(b"/chat/completions", b"/models"))

        assert client.recv(1000).startswith(b"HTTP/1.1 417 ")
