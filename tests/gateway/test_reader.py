"""Properties of what reads bytes of strangers: however they are cut into pieces, whatever is in them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.dialect import CHAT, Call, OpenAI, members
from launcher.gateway import body as bodies
from launcher.gateway.answer import Stream
from launcher.gateway.body import Body, Budget, weight
from launcher.gateway.errors import Failure
from launcher.gateway.heads import Head
from launcher.gateway.reader import Reader, Request
from launcher.gateway.routing import Upstream
from launcher.gateway.settings import Key
from launcher.gateway.state import KeyState

ANYBODY = KeyState(Key("anybody", "00" * 32))
ANYBODY.bodies.limit = 1 << 40


class Judge:
    """Lets in what has no header `refuse`, for deployments where the path says so."""

    def __init__(self, max_body_bytes: int = 1 << 20) -> None:
        self.max_body_bytes = max_body_bytes
        self.bodies = Budget(1 << 40)

    def judge(self, request: Request) -> None:
        if request.path == "/ask":
            request.asker = ANYBODY
        if b"refuse" in request.headers:
            request.refusal = Failure(401, "refused")


class Sink:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[bytes, bytes], bool, bytes]] = []
        self.costs = 0

    def begun(self) -> None: ...
    def wait_for_body(self) -> None: ...

    def taken(self, request: Request, body: bytes, cost: int) -> None:
        self.costs += cost
        self.requests.append((request.method, request.path, dict(request.headers), request.keep_alive, body))


def read(pieces: Sequence[bytes], judge: Judge | None = None) -> tuple[list[Any], int | None]:
    """The requests that are in `pieces`, and the status of the failure that ended them, None for none."""
    judge, sink = judge or Judge(), Sink()
    reader = Reader(judge, sink)
    status = None
    try:
        for piece in pieces:
            reader.feed(piece)
    except Failure as failure:
        status = failure.status
    reader.close()
    assert ANYBODY.bodies.held == judge.bodies.held == sink.costs  # what was begun and not ended is given back
    ANYBODY.bodies.held = 0
    return sink.requests, status


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
HEADER = st.tuples(TOKEN.map(lambda name: f"x-{name}"), VALUE)
PLACES = st.lists(st.integers(0, 5000), max_size=12)


@st.composite
def good(draw: st.DrawFn) -> bytes:
    """A request that is one."""
    path = draw(st.sampled_from(["/ask", "/health", "/ask?x=1", "/api/ask"]))
    headers = [("host", "localhost"), *draw(st.lists(HEADER, max_size=5))]
    body = draw(st.binary(max_size=60))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
    if draw(st.booleans()):
        pieces = cut(body, draw(PLACES)) if body else []
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
        return b"POST %b HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n%b" % (path.encode(), lines, chunks)
    return b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (path.encode(), lines, len(body), body)


@given(st.lists(good(), min_size=1, max_size=4), PLACES)
def test_requests_are_the_same_however_they_are_cut(requests: list[bytes], places: list[int]) -> None:
    data = b"".join(requests)

    found, status = read(cut(data, places))

    assert (found, status) == read([data])
    assert (len(found), status) == (len(requests), None)


@given(good(), st.binary(min_size=1, max_size=20), st.integers(0, 400), PLACES)
def test_what_is_spoiled_is_read_the_same_way_however_it_is_cut(
    request: bytes, spoiled: bytes, at: int, places: list[int]
) -> None:
    at %= len(request)
    data = request[:at] + spoiled + request[at + len(spoiled) :] + request

    whole, pieces = read([data]), read(cut(data, places))

    assert pieces[0] == whole[0]
    assert (pieces[1] is None) == (whole[1] is None)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_nothing_that_comes_is_a_bug(pieces: list[bytes]) -> None:
    read([b"GET / HTTP/1.1\r\n", *pieces])
    read(pieces)


@given(st.integers(1, 200), PLACES)
def test_no_request_is_larger_than_it_may_be(size: int, places: list[int]) -> None:
    data = b"POST /ask HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    data += b"".join(b"1\r\n%c\r\n" % 120 for _ in range(size)) + b"0\r\n\r\n"

    found, status = read(cut(data, places), Judge(max_body_bytes=100))

    assert (len(found), status) == ((1, None) if size <= 100 else (0, 413))


def test_heads_on_one_connection_may_be_long_together() -> None:
    found, status = read([b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"] * 3000)

    assert (len(found), status) == (3000, None)


@pytest.mark.parametrize("length", [b"content-length: 99999\r\n", b"transfer-encoding: chunked\r\n"])
def test_of_a_refused_request_no_body_is_waited_for(length: bytes) -> None:
    assert read([b"POST /ask HTTP/1.1\r\nhost: a\r\nrefuse: 1\r\n" + length + b"\r\n"]) == ([], 401)


# ------------------------------------------------------------------------------------------------------------ bodies

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\\\\\"[{,'), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(["model", "x", "y", "mod\\el", '"model"', "é"]), JSON, max_size=5)


@example({"model": "\x1f"}, False, [])
@given(FIELDS, st.booleans(), PLACES)
def test_a_body_weighs_the_same_however_it_is_cut(fields: dict[str, Any], ascii_only: bool, places: list[int]) -> None:
    data = json.dumps(fields, ensure_ascii=ascii_only).encode(errors="replace")
    body, whole = Body(), Body()

    for piece in cut(data, places):
        body.add(piece, body.weigh(piece))
    whole.add(data, whole.weigh(data))

    assert (body.whole(), body.cost) == (data, whole.cost)
    assert weight(data) >= whole.cost  # of small ones it is not looked at so closely


@given(JSON, PLACES)
def test_values_are_counted_and_marks_within_texts_are_not(value: Any, places: list[int]) -> None:
    body = Body()
    for piece in cut(json.dumps(value).encode(), places):
        body.add(piece, body.weigh(piece))

    nests, commas = _counted(value)
    assert (body._nests, body._values) == (nests, nests + commas)


def _counted(value: Any) -> tuple[int, int]:
    """Lists and objects in `value`, and commas between what is in them."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    if items is None:
        return 0, 0
    inner = [_counted(item) for item in items]
    return 1 + sum(nests for nests, _ in inner), max(0, len(items) - 1) + sum(commas for _, commas in inner)


@given(FIELDS, st.text(min_size=1, max_size=10))
def test_only_the_model_of_a_body_changes(fields: dict[str, Any], name: str) -> None:
    fields = {**fields, "model": name}
    data = json.dumps(fields).encode()

    path, said = OpenAI("theirs").request(Call(CHAT, data, bodies.read(data)))

    assert (path, json.loads(said)) == ("/v1/chat/completions", {**fields, "model": "theirs"})


@given(st.lists(st.tuples(st.sampled_from(["model", "x"]), JSON), max_size=5))
def test_members_are_those_that_a_parser_finds(pairs: list[tuple[str, Any]]) -> None:
    text = "{" + " , ".join(f"{json.dumps(key)}\t: {json.dumps(value)}" for key, value in pairs) + "}"

    found = [(key, json.loads(text[start:end])) for key, start, end in members(text)]

    assert found == pairs


@given(st.binary(max_size=300))
def test_whatever_a_body_is_it_is_read_or_refused(data: bytes) -> None:
    status = fields = None
    try:
        fields = bodies.read(data)
    except Failure as failure:
        status = failure.status

    assert status == 400 or fields == orjson.loads(data)


# -------------------------------------------------------------------------------------------------- heads and events


@given(good(), good())
def test_a_head_that_is_known_is_the_head_that_a_parser_finds(first: bytes, second: bytes) -> None:
    head = Head.of(first)
    if head is None or (body := head.body(second)) is None:
        return
    (one, _), (other, _) = read([first]), read([second])

    assert [request[:4] for request in one] == [
        (method, path, {**headers, b"content-length": one[0][2][b"content-length"]}, keep)
        for method, path, headers, keep, _ in other
    ]
    assert other[0][4] in (body, b"")


@given(st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b" ")), max_size=8), PLACES)
def test_events_are_the_same_however_they_are_cut(lines: list[bytes], places: list[int]) -> None:
    data = b"".join(b"data: %b\n\n" % line for line in lines) + b"data: [DONE]\n\n"
    call = Call(CHAT, b"{}", {"model": "m", "stream": True})
    stream = Stream(call, Upstream("a", 1, False, "", OpenAI(None), None), "m")

    said = [stream.feed(piece) for piece in cut(data, places)]

    assert b"".join(said) == data
    assert all(not events or events.endswith(b"\n\n") for events in said)
    assert stream.end() == b""
