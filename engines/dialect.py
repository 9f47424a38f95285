"""How a server is spoken to by the gateway: OpenAI's calls into the server's own, and its answers back. No I/O.

An engine says which dialect its servers speak (`Engine.dialect`). Most speak OpenAI's, and get what a client sends as
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

#: what a client's fault is answered with
BAD_REQUEST = 400

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
#: fields of one request; those that come again and again are as many
MOST_FIELDS = 1000
#: how each letter of `model` begins that is written as an escape
_ESCAPED = b"\\u006"
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)  # not frozen: each request makes one, which would take three times as long
class Call:
    """One request of OpenAI's API, as it came."""

    path: str  #: what follows /v1: one of CHAT, COMPLETIONS and EMBEDDINGS
    body: bytes
    fields: Mapping[str, Any]  #: what is in `body`
    plain: bool = False  #: `names_model_once(body)`, where somebody has looked

    @property
    def stream(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Of a stream, in an event at its end."""
        options = self.fields.get("stream_options")
        return isinstance(options, Mapping) and options.get("include_usage") is True


class Events(ABC):
    """The events of one stream, translated as they come."""

    @abstractmethod
    def event(self, data: bytes) -> bytes:
        """What is said for one event of the server; `data` is what follows `data:`. Raises `InferenceError` where the
        server reports a failure."""

    @abstractmethod
    def end(self) -> bytes:
        """What ends the stream. Raises `InferenceError` where the text has not come to its end."""


class Dialect(ABC):
    """One server's. Stateless: one instance serves all requests."""

    #: what its answers call the model; None where that is what the client has asked for
    model: str | None = None

    @abstractmethod
    def request(self, call: Call) -> tuple[str, bytes]:
        """The path, after the server's own, and the body of what the server is sent by POST.

        Raises `InferenceError` (status 400) for what this server cannot do.
        """

    @abstractmethod
    def whole(self, call: Call, body: bytes) -> bytes:
        """OpenAI's answer for the server's. Raises `InferenceError` where that is none."""

    def events(self, call: Call) -> Events | None:  # noqa: ARG002
        """Who translates a stream; None where the server's events are OpenAI's own."""
        return None


class OpenAI(Dialect):
    """The server's calls are OpenAI's, after `prefix`; it calls the model `model`."""

    def __init__(
        self, model: str | None, *, prefix: str = "/v1", fields: Mapping[str, str | None] | None = None
    ) -> None:
        """`model` None sends the name that the client gave; `fields` renames fields, and leaves out those that become
        None."""
        self.model = model
        self._prefix = prefix
        self._fields = fields or {}

    def request(self, call: Call) -> tuple[str, bytes]:
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
        return body


def names_model_once(body: bytes) -> bool:
    """Whether `"model"` stands in the JSON text `body` once, in its usual spelling: where the object has a model, that
    is its key. Within a string its quotes would be escaped."""
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
    """The JSON object `body` as it came but for the value of its `model`."""
    text = body.decode()
    for _, start, end in reversed([found for found in members(text) if found[0] == "model"]):
        text = f"{text[:start]}{json.dumps(model)}{text[end:]}"
    return text.encode()


def with_names(body: bytes, names: Mapping[str, str | None], model: str | None) -> bytes:
    """The JSON object `body` with its keys as `names` has them, without those that become None, and with `model`, where
    that is given. Values stay as they were written: numbers and escapes keep every digit."""
    text = body.decode()
    found = [(names.get(key, key), text[start:end]) for key, start, end in members(text)]
    values = {name: value for name, value in found if name is not None}
    if model is not None:
        values["model"] = json.dumps(model)
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in values.items())}}}".encode()


def renamed(text: bytes, old: str, new: str) -> bytes:
    """JSON, or pieces of it, with the model `old` as `new`; `text` itself where it does not stand there in one of the
    two usual ways. Within a string its quotes would be escaped, so that only keys are met."""
    close, spaced, instead = _spellings(old, new)
    said = text.replace(close, instead)
    return text.replace(spaced, instead) if said is text else said


@lru_cache
def _spellings(old: str, new: str) -> tuple[bytes, bytes, bytes]:
    return b'"model":"%b"' % old.encode(), b'"model": "%b"' % old.encode(), b'"model":%b' % json.dumps(new).encode()


def _skip(text: str, at: int) -> int:
    """Return where the white space ends that begins at `at`."""
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def refused(message: str) -> InferenceError:
    return InferenceError(message, BAD_REQUEST)
