"""The reader of a connection's requests: strict, bounded, and having them judged by their heads. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import httptools

from launcher.gateway.body import Body, Budget, hold, release
from launcher.gateway.errors import Failure
from launcher.gateway.settings import Settings
from launcher.gateway.state import KeyState

_HEAD_LIMIT = 1 << 16
_HEADERS_LIMIT = 100
#: bytes of a refused request's body that are read over, so that its connection can be used again
_PASSED_OVER = 1 << 16
_ENDLESS = 1 << 62  #: the length of a body that tells none
#: headers that may come once: twice, they could mean two things
_ONCE = frozenset({b"host", b"authorization", b"content-length", b"transfer-encoding"})
#: headers that announce a body
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


@dataclass(slots=True)
class Request:
    """A request without its body. One that was let in is used again for the next with the same head."""

    method: str
    path: str  #: without the query, which nothing here reads
    headers: dict[bytes, bytes]  #: by name, in lower case
    keep_alive: bool  #: the client may send another one on the connection
    chunks: bool  #: the client knows chunked answers, which came with HTTP/1.1
    extra: bytes = b""  #: lines of headers that its answer has in any case
    passed_on: bytes = b""  #: lines of headers that a server behind us gets
    asker: KeyState | None = None  #: whoever asks a deployment; None for other calls, whose bodies nobody reads
    payer: KeyState | None = None  #: whose budget the body's bytes count in: the asker when the head came
    refusal: Failure | None = None  #: why the head alone is refused; None where it is not
    judged_by: Settings | None = None  #: the settings that `asker` and `refusal` come from
    size: int = 0  #: bytes of its head


class Judge(Protocol):
    """Whoever knows which requests are let in."""

    max_body_bytes: int
    bodies: Budget  #: bytes of everybody's bodies

    def judge(self, request: Request) -> None:
        """Write into `request` who asks, or why it is refused: from its head alone."""


class Sink(Protocol):
    """Whoever takes the requests."""

    def begun(self) -> None:
        """The first byte of a request has come."""

    def wait_for_body(self) -> None:
        """The client waits for a word before it sends the body, which is welcome."""

    def taken(self, request: Request, body: bytes, cost: int) -> None:
        """A request is whole. Raises `Failure` where nothing after it is to be read.

        `cost` bytes are held for its body, in its payer's budget and in everybody's, and are to be given back.
        """


class Reader:
    """Reads requests out of the bytes of one connection.

    It is not to be fed again once it has raised a `Failure`: where the next request begins is not known then.
    """

    __slots__ = ("_begun", "_body", "_fed", "_head", "_head_fed", "_headers", "_judge", "_parser", "_piece", "_sink",
                 "_size", "_url", "request")  # fmt: skip

    def __init__(self, judge: Judge, sink: Sink) -> None:
        self._judge = judge
        self._sink = sink
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._head_fed = 0  #: bytes since the last request, while the head of the next is not whole
        self._fed = 0  #: bytes that were fed last
        self._begun = False  #: a request has begun, and not come to its end
        self._piece = bytearray()  #: what the data that is being read has of the body
        self.request: Request | None = None  #: the one whose body is coming
        self._start()

    def feed(self, data: bytes) -> None:
        """Read `data`. Raises `Failure` for what cannot be read, or is not to be."""
        if self._parser is None:
            return
        if self.request is None:
            self._head_fed += len(data)
        self._fed = len(data)
        try:
            self._parser.feed_data(data)
            self._take_piece()
        except httptools.HttpParserUpgrade:
            # The request itself is answered as if it had not asked for it; in which protocol more comes is not known.
            raise UPGRADED from None
        except httptools.HttpParserCallbackError as exc:
            raise exc.__context__ if isinstance(exc.__context__, Failure) else _UNREADABLE from None
        except httptools.HttpParserError as exc:
            raise Failure(400, f"this is not understood as HTTP: {exc}") from None
        if self._head_fed > _HEAD_LIMIT and self.request is None:
            raise _HEAD_TOO_LONG

    @property
    def unfinished(self) -> int:
        """The bytes of a head that is not whole, at most."""
        return (self._head_fed or self._fed) if self._begun and self.request is None else 0

    def close(self) -> None:
        """End: give back the bytes of a body that has not come to its end."""
        self._parser = None  # they hold each other
        if self.request is not None and self.request.payer is not None:
            release(self._body.cost, self._judge.bodies, self.request.payer.bodies)
        self._start()

    def _start(self) -> None:
        self.request = None
        self._begun = False
        self._piece.clear()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head = 0  #: bytes of the URL, and of names and values of headers
        self._size = 0  #: bytes of the body, and of what stands after it
        self._body = Body()

    # ----------------------------------------------------------------------------------------- httptools' callbacks

    def on_message_begin(self) -> None:
        """Begin with a new request."""
        self._start()
        self._begun = True
        self._sink.begun()

    def on_url(self, url: bytes) -> None:
        """Add to the request's path."""
        self._url += url
        self._add_to_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Raises `Failure` where it came before and may not."""
        if self.request is not None:  # after the body: nothing that is asked for may stand there
            self._grow(len(name) + len(value))
            return
        name = name.lower()
        headers = self._headers
        if name in headers and name in _ONCE:
            raise Failure(400, f"the header {name.decode()} came twice")
        headers[name] = value
        self._add_to_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Have the request judged, now that its head is whole. Raises `Failure` for a head that is not accepted."""
        assert self._parser is not None
        headers = self._headers
        if len(headers) > _HEADERS_LIMIT:
            raise Failure(431, f"a request has at most {_HEADERS_LIMIT} headers")
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _OTHER_VERSION
        if b"host" not in headers and version == "1.1":
            raise _NO_HOST
        path = self._url.decode("latin-1").partition("?")[0]
        if path.startswith("/api/"):
            path = path[4:]
        keep_alive = self._parser.should_keep_alive()
        method = self._parser.get_method().decode()
        self.request = request = Request(method, path, headers, keep_alive, version == "1.1", size=self._head)
        self._judge.judge(request)
        request.payer = request.asker
        if not _FRAMING.isdisjoint(headers):
            self._check_body(request, headers)

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body; of one that nobody reads, count it."""
        request = self.request
        assert request is not None
        self._grow(len(piece))
        if request.payer is not None:  # nobody else's is read
            self._piece += piece  # there may be many, which are weighed together

    def _take_piece(self) -> None:
        if self._piece and self.request is not None and self.request.payer is not None:
            piece = bytes(self._piece)
            self._piece.clear()
            cost = self._body.weigh(piece)
            hold(cost, self._judge.bodies, self.request.payer.bodies)
            self._body.add(piece, cost)

    def on_message_complete(self) -> None:
        """Hand the whole request to the sink."""
        self._take_piece()
        request, body = self.request, self._body
        assert request is not None
        self._head_fed = 0
        self._start()
        self._sink.taken(request, body.whole(), body.cost)

    def _check_body(self, request: Request, headers: dict[bytes, bytes]) -> None:
        assert self._parser is not None
        length = int(headers.get(b"content-length", _ENDLESS))
        if request.refusal is not None and (length > _PASSED_OVER or b"expect" in headers):
            raise request.refusal
        if self._judge.max_body_bytes < length < _ENDLESS:
            raise self._too_large()
        if self._parser.should_upgrade():
            raise _NO_UPGRADE  # what follows would be in the other protocol, and no body
        if headers.get(b"expect", b"").lower() == b"100-continue":
            if request.asker is None:
                raise _NO_BODY
            self._sink.wait_for_body()

    def _add_to_head(self, amount: int) -> None:
        self._head += amount
        if self._head > _HEAD_LIMIT:
            raise _HEAD_TOO_LONG

    def _grow(self, amount: int) -> None:
        self._size += amount
        if self._size > self._judge.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> Failure:
        limit = self._judge.max_body_bytes
        return Failure(413, f"a request's body has at most {limit >> 20} MiB (gateway.max_body_mib)")


#: sent to nobody: the request that asked for another protocol has its own answer
UPGRADED = Failure(400, "only HTTP/1.1 is spoken here")
_HEAD_TOO_LONG = Failure(431, f"the line and headers of a request have at most {_HEAD_LIMIT} bytes")
_NO_BODY = Failure(417, "nobody reads a body there: ask without the header expect")
_NO_HOST = Failure(400, "a request of HTTP/1.1 needs the header host")
_NO_UPGRADE = Failure(400, "only HTTP/1.1 is spoken here: ask without the header upgrade (curl --http1.1)")
_OTHER_VERSION = Failure(400, "only HTTP/1.1 and HTTP/1.0 are spoken here")
_UNREADABLE = Failure(400, "this request cannot be read")
