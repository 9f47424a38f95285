"""The bodies of requests: bounded as they come, before anything is made of them, and read. No I/O.

A body costs more than its bytes: what is made of `[[],[],…` takes twenty times as many. So a body is refused for how
much is in it while it comes, and what all of them hold together is counted.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from engines.base import InferenceError
from engines.dialect import MOST_FIELDS, members
from launcher.gateway.errors import Failure
from launcher.gateway.settings import MOST_TIMES

#: at most: values in one body; texts among them; lists and objects among them; and their depth in each other
MOST_VALUES, MOST_TEXTS, MOST_NESTS, DEEPEST = 2_000_000, 1_000_000, 100_000, 100
#: bytes that a value takes once it is read: any, and more for a text, a list or an object
_VALUE_BYTES, _TEXT_BYTES, _NEST_BYTES = 32, 32, 64
#: how often a body's bytes are held: as it came, as what is read of it, and as it is sent on
_TIMES = 3
#: the characters that stand before the values of a list or an object; within texts they mean nothing
_NESTS, _MARKS = b"[{", b"[{,"
#: so few of these characters need no look at whether they stand in texts
_FEW = 4096
#: bytes behind one of these, at most: a value, which may be a text, a list or an object, and the text that is its name
_MARK_BYTES = _VALUE_BYTES + 2 * _TEXT_BYTES + _NEST_BYTES
#: bytes of a body that is not counted: as many connections as there may be hold less of these than any budget
SMALL = 512

#: the first letters of fields of which servers make grammars, patterns, schemas or templates
_GRAMMARS = ("chat_template", "ebnf", "extra_body", "function", "grammar", "guided", "json_schema", "lark", "pattern",
             "regex", "response_format", "schema", "struct", "tool")  # fmt: skip
#: the fields that everybody sends, which are none of those
_PLAIN = frozenset(
    ["best_of", "dimensions", "echo", "encoding_format", "frequency_penalty", "input", "logit_bias", "logprobs",
     "max_completion_tokens", "max_tokens", "messages", "metadata", "min_p", "model", "n", "parallel_tool_calls",
     "presence_penalty", "prompt", "repetition_penalty", "seed", "service_tier", "stop", "store", "stream",
     "stream_options", "suffix", "temperature", "top_k", "top_logprobs", "top_p", "user"]
)  # fmt: skip
_NESTED = (dict, list)
_BRACKETS = re.compile(r"[(\[{]|([)\]}])")
#: rules and references of a grammar or a schema, which servers follow from one to the next, in calls within calls
_RULE, _REFERENCE, _MOST_LINKS = "::=", "$ref", 1000
#: values of a schema, some hundred tools' among them; brackets of all its texts; and what may be there or not, or again
#: and again, in a grammar: a thousand in a row keep llama.cpp busy for minutes
_MOST_OF_SCHEMA, _MOST_BRACKETS, _MOST_REPEATS = 100_000, 20_000, 200
_REPEATS = re.compile(r"(?<=[\w\])\"'])[?*+]")


@dataclass(eq=False, slots=True)
class Budget:
    """A number of bytes that may be held at the same time, and how many are."""

    limit: int
    held: int = 0

    def has(self, amount: int) -> bool:
        """Return whether `amount` more bytes may be held."""
        return self.held + amount <= self.limit


def hold(amount: int, of_all: Budget, of_key: Budget) -> None:
    """Take bytes for a body. Raises `Failure` (503, or 429 where it is the key's own limit) where there are too few."""
    if not of_all.has(amount):
        raise _ALL_HELD
    if not of_key.has(amount):
        raise _ITS_HELD
    of_all.held += amount
    of_key.held += amount


def release(amount: int, of_all: Budget, of_key: Budget) -> None:
    """Give back what `hold` has taken."""
    of_all.held -= amount
    of_key.held -= amount


_LATER = {"retry-after": "1"}
_ALL_HELD = Failure(503, "bodies hold as many bytes as they may (gateway.max_held_mib); ask again later", "busy",
                    headers=_LATER)  # fmt: skip
_ITS_HELD = Failure(429, "the bodies of this key hold as many bytes as they may; ask again later",
                    "too_many_requests", headers=_LATER)  # fmt: skip


class Body:
    """One body, put together from its pieces."""

    __slots__ = ("_escape", "_first", "_in_text", "_nests", "_quotes", "_rest", "_times", "_values", "cost")

    def __init__(self) -> None:
        self.cost = 0  #: bytes that its pieces hold, and that the values read of them will hold
        self._first = b""
        self._rest = bytearray()  # one object for many small pieces
        self._values = self._nests = self._quotes = 0
        self._times = _TIMES
        self._in_text = False  #: the last piece ended within a text
        self._escape = b""  #: the backslash that the last piece ended with

    def weigh(self, piece: bytes) -> int:
        """Return what the next piece will cost in bytes. Raises `Failure` (400) where there is too much in the body."""
        before, more = self._made_of_it(), 0
        data = self._escape + piece
        outside = self._outside_of_texts(data)
        if self._times == _TIMES and (not data.isascii() or b"\\u" in data):
            more = (MOST_TIMES - _TIMES) * (len(self._first) + len(self._rest))
            self._times = MOST_TIMES
        self._nests += len(outside) - len(outside.translate(None, _NESTS))
        self._values += len(outside) - len(outside.translate(None, _MARKS))
        if self._values > MOST_VALUES or self._nests > MOST_NESTS or self._quotes > 2 * MOST_TEXTS:
            raise _TOO_MUCH
        return more + self._times * len(piece) + self._made_of_it() - before

    def _made_of_it(self) -> int:
        return _VALUE_BYTES * self._values + _NEST_BYTES * self._nests + _TEXT_BYTES * (self._quotes // 2)

    def add(self, piece: bytes, cost: int) -> None:
        """Keep a piece, which costs `cost` bytes as `weigh` has said."""
        self.cost += cost
        if self._first:
            self._rest += piece
        else:
            self._first = piece

    def whole(self) -> bytes:
        """Return all pieces as one."""
        return b"".join((self._first, self._rest)) if self._rest else self._first

    def _outside_of_texts(self, data: bytes) -> bytes:
        open_escape = (len(data) - len(data.rstrip(b"\\"))) % 2
        self._escape = b"\\" * open_escape
        data = data[: len(data) - open_escape].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = data.split(b'"')
        self._quotes += len(parts) - 1
        outside = parts[self._in_text :: 2]
        self._in_text ^= len(parts) % 2 == 0
        return b"".join(outside)


def weight(body: bytes) -> int:
    """Return what a body that came in one piece costs in bytes. Raises `Failure` (400) as `Body.weigh`."""
    marks = len(body) - len(body.translate(None, _MARKS))
    return MOST_TIMES * len(body) + _MARK_BYTES * marks if marks <= _FEW else Body().weigh(body)


def read(body: bytes) -> dict[str, Any]:
    """Return the JSON object that `body` is. Raises `Failure` (400) for anything else, and where it is too deep."""
    try:
        fields = orjson.loads(body)
    except ValueError as exc:
        raise Failure(400, f"the body is not JSON: {exc}", "invalid_json") from exc
    if not isinstance(fields, dict):
        raise Failure(400, f"the body must be a JSON object, not {reprlib.repr(fields)}", "invalid_json")
    if len(fields) > MOST_FIELDS:
        raise _TOO_MANY_FIELDS
    if len(body) > 2 * DEEPEST and body.count(b"[") + body.count(b"{") > DEEPEST:
        _check_depth(fields)
    if not _PLAIN.issuperset(fields):
        _check_grammars(fields)
    return fields


def check_model_once(body: bytes) -> None:
    """Raise `Failure` (400) where the object `body` has two models: one of its readers may take the other one."""
    try:
        models = sum(key == "model" for key, _, _ in members(body.decode()))
    except InferenceError:
        raise _TOO_MANY_FIELDS from None
    if models > 1:
        raise Failure(400, "model stands in the body twice; leave one of them out", "invalid_json")


def _check_depth(fields: Mapping[str, Any]) -> None:
    level: list[Any] = [fields]
    for _ in range(DEEPEST):
        inner = (nest.values() if type(nest) is dict else nest for nest in level)
        level = [item for items in inner for item in items if type(item) in _NESTED]
        if not level:
            return
    raise Failure(400, f"lists and objects of the body are more than {DEEPEST} deep in each other", "invalid_json")


def _check_grammars(fields: Mapping[str, Any]) -> None:
    """Raise `Failure` (400) for grammars and schemas that a server could not stand.

    Servers read them in calls within calls, and some crash, or do not come to an end, where there are too many.
    """
    brackets = 0
    for name in fields.keys() - _PLAIN:
        if not name.startswith(_GRAMMARS):
            continue
        links = 0
        for number, text in enumerate(_texts(fields[name])):
            if len(text) > DEEPEST:  # else it is no grammar to speak of
                links += text.count(_RULE)
                brackets += (found := sum(map(text.count, "([{")))
                deep = brackets > _MOST_BRACKETS or (found > DEEPEST and _depth(text) > DEEPEST)
                if deep or _repeats(text) > _MOST_REPEATS:
                    raise _too_complex(name)
            elif text == _REFERENCE:
                links += 1
            if number > _MOST_OF_SCHEMA or links > _MOST_LINKS:
                raise _too_complex(name)


def _too_complex(name: str) -> Failure:
    text = (
        f"{name} is more than a server is asked to read: it has brackets more than {DEEPEST} deep in each other, more "
        f"than {_MOST_LINKS:,} rules or references, {_MOST_REPEATS} optional or repeated parts, or {_MOST_OF_SCHEMA:,} "
        "values"
    )
    return Failure(400, text, "too_complex")


def _repeats(text: str) -> int:
    """Return how many parts of a grammar may be left out or repeated; 0 for a text without rules."""
    return sum(1 for _ in _REPEATS.finditer(text)) if _RULE in text else 0


def _texts(value: object) -> Iterator[str]:
    """Yield all that is in `value`, keys too: texts as they are, and anything else as an empty one."""
    left = [value]
    while left:
        item = left.pop()
        yield item if isinstance(item, str) else ""
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += item
            left += item.values()


def _depth(text: str) -> int:
    """Return how deep brackets are within each other, at most."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth = max(0, depth - 1) if bracket[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


_TOO_MANY_FIELDS = Failure(400, f"a body has at most {MOST_FIELDS:,} fields", "too_complex")
_TOO_MUCH = Failure(
    400, f"there is too much in the body: at most {MOST_VALUES:,} values, {MOST_TEXTS:,} of them texts and "
    f"{MOST_NESTS:,} lists and objects", "too_complex",
)  # fmt: skip
