"""How a server is spoken to by the gateway: OpenAI's calls into the server's own, and its answers back. No I/O.

An engine says which dialect its servers speak (`Engine.dialect`). Most speak OpenAI's, and get what a client sends as
it came, but for the model's name.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engines.errors import InferenceError

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"

#: what a client's fault is answered with
BAD_REQUEST = 400

_MODEL_KEY = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)  # not frozen: each request makes one, which would take three times as long
class Call:
    """One request of OpenAI's API, as it came."""

    path: str  #: what follows /v1: one of CHAT, COMPLETIONS and EMBEDDINGS
    body: bytes
    fields: Mapping[str, Any]  #: what is in `body`

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
            names = {name: self._fields.get(name, name) for name in call.fields}
            fields = {new: call.fields[name] for name, new in names.items() if new is not None}
            return path, json.dumps(fields | ({} if self.model is None else {"model": self.model})).encode()
        if self.model is None:
            return path, body
        if body.count(b'"model"') == 1 and (said := renamed(body, call.fields["model"], self.model)) is not body:
            return path, said
        return path, self._renamed(call, self.model)

    def whole(self, call: Call, body: bytes) -> bytes:  # noqa: ARG002
        return body

    @staticmethod
    def _renamed(call: Call, model: str) -> bytes:
        """The body as it came but for the model's name: numbers, escapes and unknown fields stay as they were written.

        In a JSON text `"model":` is a key: within a string its quotes would be escaped.
        """
        body = call.body
        found = _MODEL_KEY.search(body)
        if found is None or _MODEL_KEY.search(body, found.end()) or not _says(found[1], call.fields["model"]):
            # Another object in it has such a key, too.
            return json.dumps({**call.fields, "model": model}).encode()
        start, end = found.span(1)
        return body[:start] + json.dumps(model).encode() + body[end:]


def renamed(text: bytes, old: str, new: str) -> bytes:
    """JSON, or pieces of it, with the model `old` as `new`; `text` itself where it does not stand there in one of the
    two usual ways. Within a string its quotes would be escaped, so that only keys are met."""
    close, spaced, instead = _spellings(old, new)
    said = text.replace(close, instead)
    return text.replace(spaced, instead) if said is text else said


@lru_cache
def _spellings(old: str, new: str) -> tuple[bytes, bytes, bytes]:
    return b'"model":"%b"' % old.encode(), b'"model": "%b"' % old.encode(), b'"model":%b' % json.dumps(new).encode()


def _says(written: bytes, name: str) -> bool:
    return written[1:-1] == name.encode() or bool(json.loads(written) == name)


def refused(message: str) -> InferenceError:
    return InferenceError(message, BAD_REQUEST)
