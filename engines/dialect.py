"""The gateway's translation between OpenAI's API and a server's own: requests one way, answers the other. No I/O.

An engine says which dialect its servers speak (`Engine.dialect`). Most speak OpenAI's, and get the client's request as
it came, but for the model's name.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from engines.errors import InferenceError

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"

#: HTTP status for a fault of the client's
BAD_REQUEST = 400

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
#: fields of one request; a field that comes again counts again
MOST_FIELDS = 1000
#: the beginning of each letter of `model` that is written as an escape
_ESCAPED = b"\\u006"
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)  # not frozen: each request makes one, which would take three times as long
class Call:
    """One request of OpenAI's API, as it came."""

    path: str  #: the path after /v1: one of CHAT, COMPLETIONS and EMBEDDINGS
    body: bytes
    fields: Mapping[str, Any]  #: `body`, parsed
    plain: bool = False  #: `names_model_once(body)`; False also if nobody has looked

    @property
    def stream(self) -> bool:
        """True if the client wants the answer as a stream of events."""
        return self.fields.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """True if the client wants the token counts in an event at the end of a stream."""
        options = self.fields.get("stream_options")
        return isinstance(options, Mapping) and options.get("include_usage") is True


class Events(ABC):
    """The events of one stream, translated as they come."""

    @abstractmethod
    def event(self, data: bytes) -> bytes:
        """Return OpenAI's events for one of the server's; `data` is the part after `data:`.

        Raises `InferenceError` if the server reports a failure.
        """

    @abstractmethod
    def end(self) -> bytes:
        """Return the bytes that end the stream. Raises `InferenceError` if the text has not come to its end."""


class Dialect(ABC):
    """The translation for one kind of server. Stateless: one instance serves all requests."""

    #: the model's name in the server's answers; None if that is the name that the client gave
    model: str | None = None

    @abstractmethod
    def request(self, call: Call) -> tuple[str, bytes]:
        """Return the path, after the server's own, and the body for a POST to the server.

        Raises `InferenceError` (status 400) for what this server cannot do.
        """

    @abstractmethod
    def whole(self, call: Call, body: bytes) -> bytes:
        """Return OpenAI's answer for the server's. Raises `InferenceError` if the server's is no answer."""

    def events(self, call: Call) -> Events | None:  # noqa: ARG002
        """Return a translator for one stream; None if the server's events are OpenAI's own."""
        return None


class OpenAI(Dialect):
    """The server's calls are OpenAI's, after `prefix`; it calls the model `model`."""

    def __init__(
        self, model: str | None, *, prefix: str = "/v1", fields: Mapping[str, str | None] | None = None
    ) -> None:
        """Set the server's name for the model, and its names for fields.

        `model` None sends the name that the client gave. `fields` renames fields, and leaves out those that become
        None.
        """
        self.model = model
        self._prefix = prefix
        self._fields = fields or {}

    def request(self, call: Call) -> tuple[str, bytes]:
        """Return the path after `prefix`, and the body as it came but for the names of model and fields."""
        path = f"{self._prefix}{call.path}"
        body = call.body
        if self._fields and not self._fields.keys().isdisjoint(call.fields):
            return path, with_names(body, self._fields, self.model)
        if self.model is None:
            return path, body
        if call.plain and (said := renamed(body, call.fields["model"], self.model)) is not body:
            return path, said
        return path, with_model(body, self.model)

    def whole(self, call: Call, body: bytes) -> bytes:  # noqa: ARG002
        """Return the server's answer as it is."""
        return body


def names_model_once(body: bytes) -> bool:
    """Return whether `"model"` stands in the JSON text `body` once, in its usual spelling.

    If the object has a model, that is then its key: within a string its quotes would be escaped.
    """
    return body.count(b'"model"') == 1 and (b"\\" not in body or _ESCAPED not in body)


def members(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each key of the JSON object `text`, those that come twice included, and where its value begins and ends.

    `text` is valid JSON, and not nested too deep for Python's own parser. Raises `InferenceError` (status 400) after
    `MOST_FIELDS` of them.
    """
    at = _skip(text, text.index("{") + 1)
    for number in count():
        if text[at] == "}":
            return
        if number == MOST_FIELDS:
            raise refused(f"a request has at most {MOST_FIELDS:,} fields")
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the colon
        _, end = _DECODER.raw_decode(text, at)
        yield key, at, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def with_model(body: bytes, model: str) -> bytes:
    """Return the JSON object `body` as it came but for the value of its `model`."""
    text = body.decode()
    for _, start, end in reversed([found for found in members(text) if found[0] == "model"]):
        text = f"{text[:start]}{json.dumps(model)}{text[end:]}"
    return text.encode()


def with_names(body: bytes, names: Mapping[str, str | None], model: str | None) -> bytes:
    """Return the JSON object `body` with keys renamed by `names`, and with `model` unless that is None.

    Keys that become None are left out. Values stay as they were written: numbers and escapes keep every digit.
    """
    text = body.decode()
    found = [(names.get(key, key), text[start:end]) for key, start, end in members(text)]
    values = {name: value for name, value in found if name is not None}
    if model is not None:
        values["model"] = json.dumps(model)
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in values.items())}}}".encode()


def renamed(text: bytes, old: str, new: str) -> bytes:
    """Return JSON, or pieces of it, with the model `old` as `new`; `text` itself if `old` is not found.

    The model is looked for in the two usual spellings. Within a string its quotes would be escaped, so that only keys
    are met.
    """
    close, spaced, instead = _spellings(old, new)
    said = text.replace(close, instead)
    return text.replace(spaced, instead) if said is text else said


@lru_cache
def _spellings(old: str, new: str) -> tuple[bytes, bytes, bytes]:
    return b'"model":"%b"' % old.encode(), b'"model": "%b"' % old.encode(), b'"model":%b' % json.dumps(new).encode()


def _skip(text: str, at: int) -> int:
    """Return where the white space ends that begins at `at`."""
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern also matches no white space
    return found.end()


def refused(message: str) -> InferenceError:
    """Return the error that answers a client with status 400."""
    return InferenceError(message, BAD_REQUEST)
