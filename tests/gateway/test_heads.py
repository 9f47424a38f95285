"""What was read once is not read again, and means the same."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engines.dialect import OpenAI
from launcher.gateway.heads import Head
from launcher.gateway.routing import Upstream
from launcher.gateway.settings import Key, hashed
from launcher.gateway.upstream import Connection
from tests.gateway.harness import Fake, Running, gateway, settings, until

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nB: c\r\n\r\n"


def message(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


@pytest.mark.parametrize("length", [b"Content-Length: ", b"content-length: "])
@pytest.mark.parametrize("after", [b"", b"B: c\r\n"])
def test_two_that_differ_in_their_bodies_have_one_head(length: bytes, after: bytes) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: a\r\n" + length + b"%d\r\n" + after + b"\r\n"

    known = Head.of(message(b"abc", head))

    assert known is not None
    for body in (b"abc", b"", b"\r\n\r\n" * 100):
        assert known.body(message(body, head)) == body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD % 3,
        HEAD % 3 + b"ab",
        HEAD % 3 + b"abcd",
        HEAD % 3 + b"abc" + HEAD % 3,
        HEAD.replace(b"%d", b"03") + b"abc",
        HEAD.replace(b"%d", b"+3") + b"abc",
        HEAD.replace(b"%d", b"3 ") + b"abc",
        HEAD.replace(b"%d", b"33") + b"abc",
        HEAD.replace(b"%d", b"3\n") + b"abc",
        HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"abc",
        HEAD.replace(b"\r\nContent-Length", b"\r\nX: Content-Length") % 3 + b"abc",
    ],
)
def test_what_is_not_one_whole_message_goes_to_the_parser(data: bytes) -> None:
    known = Head.of(message(b"x"))

    assert known is not None
    assert known.body(data) is None
    assert Head.of(data) is None


def test_a_head_without_its_end_is_none_whatever_its_length_says() -> None:
    known = Head.of(message(b"x"))
    start, after = HEAD.split(b"%d")

    assert known is not None
    for missing in range(1, 60):  # one of them is as long as it says from a wrong end
        assert known.body(start + b"%d" % missing + b"\r") is None
        assert known.body(start + b"%d" % missing + after[:-1]) is None


class Reader:
    """All that a parser says of one message, but for its length."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.bodies: list[bytes] = []
        self.ends = 0

    def on_url(self, url: bytes) -> None:
        self.said.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.said += [name, b"" if name.lower() == b"content-length" else value]

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    def on_message_complete(self) -> None:
        self.ends += 1


def read(data: bytes) -> tuple[list[bytes], bytes, int] | None:
    """None where the parser refuses it."""
    reader = Reader()
    parser = httptools.HttpResponseParser if data.startswith(b"HTTP/") else httptools.HttpRequestParser
    with contextlib.suppress(httptools.HttpParserError):
        parser(reader).feed_data(data)
        return reader.said, b"".join(reader.bodies), reader.ends
    return None


PIECES = st.sampled_from(
    [b"POST / HTTP/1.1", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"a", b"Content-Length: %d", b"content-length: %d",
     b"Content-Length: 3", b"Content-Length:%d", b"Transfer-Encoding: chunked", b"0", b"X: y", b"%d", b"Host: a"]
)  # fmt: skip


LINE = st.lists(PIECES, max_size=3).map(b"".join)
LINES = st.lists(st.one_of(st.sampled_from([b"X: y", b"Content-Length: %d"]), LINE), max_size=5).map(b"\r\n".join)


@pytest.mark.parametrize("start", [b"POST / HTTP/1.1", b"HTTP/1.1 200 OK"])
@given(LINES, st.binary(max_size=12), st.binary(max_size=12))
@example(b"Content-Length: %d\r\nX: y", b"abc", b"")
@example(b"Content-Length: %d\r\n X: y", b"abc", b"")
@example(b"Content-Length: %d\r\nContent-Length: 3", b"abc", b"ab")
@example(b"Content-Length: %d\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", b"ab")
@example(b"X: y\n\nPOST / HTTP/1.1\r\nContent-Length: %d", b"abc", b"")
def test_the_parser_says_the_same_of_messages_with_one_head(
    start: bytes, lines: bytes, body: bytes, other: bytes
) -> None:
    """However a head is written: where it takes one as one message, so it does any other, and its body is that."""
    whole = start + b"\r\n" + lines + b"\r\n\r\n"
    first, second = (whole.replace(b"%d", b"%d" % len(it)) + it for it in (body, other))
    head = Head.of(first)
    if head is None or (found := read(first)) is None or (again := head.body(second)) is None:
        return

    assert found[1:] == (head.body(first), 1)
    assert read(second) == (found[0], again, 1)


def post(body: bytes, key: str = "", path: str = "/v1/chat/completions", more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n{more}"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def ask(client: socket.socket, key: str, path: str = "/v1/chat/completions", more: str = "") -> bytes:
    client.sendall(post(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}', key, path, more))
    answer = b""
    while not answer.partition(b"\r\n\r\n")[2].endswith(b"}"):
        if not (data := client.recv(65536)):
            break
        answer += data
    return answer


def reads(it: Running) -> bool:
    """Whether a request has begun to come, and not ended."""
    return any(connection.reading_since is not None for connection in it.server.connections)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def statuses(client: socket.socket, count: int) -> list[int]:
    """Return the statuses of the next `count` answers, which may come together or apart."""
    data = b""
    while len(found := re.findall(rb"HTTP/1.1 (\d+)", data)) < count:
        data += client.recv(65536)
    return [int(one) for one in found]


def test_a_head_that_was_let_in_is_let_in_again_until_its_key_is_not(a: Fake) -> None:
    made = settings({"m": [a.member]}, keys=[Key("one", hashed("the-first-ones-key", ""))])
    with gateway(made) as it, socket.create_connection(("127.0.0.1", it.port)) as client:
        assert [status(ask(client, "the-first-ones-key")) for _ in range(3)] == [200] * 3
        assert status(ask(client, "the-first-ones-kez")) == 401
        changed = dataclasses.replace(made, keys=[Key("two", hashed("the-second-ones-key", ""))])
        it.do(lambda: it.server.use(changed, {}))

        assert status(ask(client, "the-first-ones-key")) == 401
        assert status(ask(client, "the-second-ones-key")) == 200


TWO_KEYS = [Key(name, hashed(f"the-own-key-of-{name}", "")) for name in ("one", "two")]


def test_a_head_is_that_of_its_own_request(a: Fake) -> None:
    with (
        gateway(settings({"m": [a.member]}, keys=TWO_KEYS)) as it,
        socket.create_connection(("127.0.0.1", it.port)) as client,
    ):
        assert [status(ask(client, "the-own-key-of-one")) for _ in range(2)] == [200, 200]
        other = post(b'{"model": "m", "messages": []}', "the-own-key-of-two")
        client.sendall(other[:-3])
        until(lambda: reads(it))
        client.sendall(other[-3:])
        assert status(client.recv(65536)) == 200

        assert status(ask(client, "the-own-key-of-one")) == 200

        assert {key.name: key.requests for key in it.server.table.askers()} == {"one": 3, "two": 1}


def test_what_waits_for_its_turn_is_not_taken_for_what_is_answered(a: Fake) -> None:
    with (
        gateway(settings({"m": [a.member]}, keys=TWO_KEYS)) as it,
        socket.create_connection(("127.0.0.1", it.port)) as client,
    ):
        slow = b'{"model": "m", "messages": [{"role": "user", "content": "slow 0.2"}]}'
        client.sendall(post(slow, "the-own-key-of-one"))
        until(lambda: len(it.server.exchanges) == 1)
        client.sendall(post(b'{"model": "m", "messages": []}', "the-own-key-of-two"))
        assert statuses(client, 2) == [200, 200]

        assert status(ask(client, "the-own-key-of-one")) == 200

        assert {key.name: key.requests for key in it.server.table.askers()} == {"one": 2, "two": 1}


def test_what_a_head_says_holds_each_time(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", it.port)) as client:
                answer = ask(client, "", "/api/v1/chat/completions?x=y", "traceparent: 00-1\r\nConnection: close\r\n")

                assert status(answer) == 200
                assert b"\r\nconnection: close\r\n" in answer
                assert client.recv(1) == b""
        assert [asked["headers"]["traceparent"] for asked in a.asked[-3:]] == ["00-1"] * 3


def test_a_head_that_is_known_does_not_hide_what_comes_with_it(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, socket.create_connection(("127.0.0.1", it.port)) as client:
        assert status(ask(client, "")) == 200
        body = b'{"model": "m", "messages": []}'

        client.sendall(post(body) + post(body)[:-5])  # and the beginning of another
        first = client.recv(65536)
        client.sendall(body[-5:])
        second = client.recv(65536)
        client.sendall(post(b"no {}"))
        third = client.recv(65536)

        assert [status(first), status(second), status(third)] == [200, 200, 400]


def test_the_next_of_a_client_that_does_not_wait_is_no_answer_to_the_first(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, socket.create_connection(("127.0.0.1", it.port)) as client:
        assert status(ask(client, "")) == 200
        client.sendall(post(b'{"model": "m", "messages": [{"role": "user", "content": "slow 0.3"}]}'))
        until(lambda: len(it.server.exchanges) == 1)
        client.sendall(post(b"no"))

        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2:  # the second may come right behind the first
            answers += client.recv(65536)
        assert [status(answer) for answer in answers.split(b"HTTP/1.1")[1:]] == [200, 400]


def test_a_body_that_looks_like_a_request_is_a_body(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it, socket.create_connection(("127.0.0.1", it.port)) as client:
        assert status(ask(client, "")) == 200
        inner = post(b'{"model": "m", "messages": []}')
        before = len(a.asked)
        outer = post(inner)

        for first in (outer[: -len(inner)], post(b"no") + outer[: -len(inner)]):
            client.sendall(first)
            until(lambda: reads(it))
            client.sendall(inner)
            until(lambda: not reads(it))

        assert re.findall(rb"HTTP/1.1 (\d+)", client.recv(65536)) == [b"400"] * 3
        assert len(a.asked) == before


class Recorder:
    """In an attempt's place."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_head(self, _: Connection, status: int) -> None:
        self.heard.append(status)

    def on_body(self, body: bytes) -> None:
        self.heard.append(body)

    def on_end(self, _: Connection, *, reusable: bool) -> None:
        self.heard.append("kept" if reusable else "not kept")

    def on_whole(self, _: Connection, body: bytes) -> None:
        self.heard.append(("known", body))

    def on_lost(self, _: Connection, reason: str) -> None:
        self.heard.append(reason)

    def on_unreadable(self, reason: str) -> None:
        self.heard.append(reason)

    def crash(self) -> None:
        raise AssertionError


class Wire(asyncio.Transport):
    pass


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def heard(connection: Connection, *pieces: bytes) -> list[object]:
    connection.receiver = receiver = Recorder()
    for piece in pieces:
        connection.data_received(piece)
    return receiver.heard


@pytest.fixture
def connection() -> Connection:
    made = Connection(Upstream("127.0.0.1", 1, False, "", OpenAI("theirs"), "theirs"))
    made.connection_made(Wire())
    return made


def test_a_good_answer_is_known_the_next_time(connection: Connection) -> None:
    assert heard(connection, message(b"{}", ANSWER)) == [200, b"{}", "kept"]
    assert heard(connection, message(b"[1]", ANSWER)) == [("known", b"[1]")]
    assert heard(connection, message(b"[1]", ANSWER)[:-1], b"]") == [200, b"[1", b"]", "kept"]
    assert heard(connection, message(b"[2]", ANSWER)) == [("known", b"[2]")]


@pytest.mark.parametrize(
    "head",
    [
        ANSWER.replace(b"200 OK", b"503 Busy"),
        ANSWER.replace(b"application/json", b"text/event-stream"),
    ],
)
def test_an_answer_that_is_more_than_its_body_is_read_each_time(connection: Connection, head: bytes) -> None:
    first = heard(connection, message(b"{}", head))

    assert len(first) == 3
    assert heard(connection, message(b"{}", head)) == first


def test_the_middle_of_an_answer_is_no_known_one(connection: Connection) -> None:
    inner = message(b"{}", ANSWER)
    outer = message(inner, ANSWER)
    heard(connection, inner)

    assert heard(connection, outer[: -len(inner)], inner) == [200, inner, "kept"]


def test_a_good_answer_in_pieces_makes_no_bad_one_known(connection: Connection) -> None:
    busy = message(b"{}", ANSWER.replace(b"200 OK", b"503 Busy"))
    heard(connection, busy)
    heard(connection, message(b"{}", ANSWER)[:-1], b"}")

    assert heard(connection, busy) == [503, b"{}", "kept"]
