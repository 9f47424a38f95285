"""The parts of a language model that need no model: read and check requests, sample, turn tokens into text."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bad_request import BadRequestError

if TYPE_CHECKING:
    import torch

GREEDY_BELOW = 1e-5  # vLLM's limit too; dividing logits by less overflows
PROMPT_TAIL = 6  # prompt tokens the first piece is decoded with, so that it keeps its space
REPLACEMENT = "\ufffd"  # a tokenizer's text for half a character


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling options of a request, with vLLM's defaults; seed None is a random one."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  #: 0 is all tokens
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def from_json(cls, text: str) -> Sampling:
        """Read a JSON object; null means not given. Raises `BadRequestError` that names the key and the value."""
        raw = parse_json("sampling_parameters", text)
        if not isinstance(raw, dict):
            raise BadRequestError(f"sampling_parameters must be a JSON object, not {reprlib.repr(raw)}")
        for key, value in raw.items():
            if key not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                raise BadRequestError(f"unknown sampling parameter {key!r} = {reprlib.repr(value)}; known: {known}")
        given = {key: value for key, value in raw.items() if value is not None}
        default = cls()
        seed = _integer(given, "seed", -1, low=-(2**63), high=2**63 - 1)
        top_k = _integer(given, "top_k", default.top_k, low=-1)
        return cls(
            temperature=_number(given, "temperature", default.temperature, low=0, high=1000),
            top_p=_number(given, "top_p", default.top_p, low=1e-6, high=1),
            top_k=max(top_k, 0),  # vLLM takes -1 for "all tokens" as well
            max_tokens=_integer(given, "max_tokens", default.max_tokens, low=1),
            stop=_stop_strings(given.get("stop", [])),
            seed=None if seed == -1 else seed,  # as in vLLM
        )


def parse_json(name: str, text: str) -> object:
    """Parse JSON, without NaN and Infinity. Raises `BadRequestError` that begins with `name`."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed: object = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise BadRequestError(f"{name} is not valid JSON: {exc}: {reprlib.repr(text)}") from exc
    return parsed


def _number(given: Mapping[str, object], key: str, default: float, *, low: float, high: float) -> float:
    value = given.get(key, default)
    # bool is an int in Python, but `true` is no number in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(f"{key} must be a number, not {reprlib.repr(value)}")
    if not low <= value <= high:
        raise BadRequestError(f"{key} must be from {low} to {high}, not {reprlib.repr(value)}")
    return float(value)


def _integer(given: Mapping[str, object], key: str, default: int, *, low: int, high: int = 2**31 - 1) -> int:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequestError(f"{key} must be an integer, not {reprlib.repr(value)}")
    if not low <= value <= high:
        raise BadRequestError(f"{key} must be from {low} to {high}, not {reprlib.repr(value)}")
    return value


def _stop_strings(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequestError(f"stop must be a non-empty string or a list of them, not {reprlib.repr(value)}")
    return tuple(stops)


def parse_messages(text: str) -> list[dict[str, object]]:
    """Parse a JSON list of {role, content}. Raises `BadRequestError` for anything else."""
    messages = parse_json("messages", text)
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"messages must be a JSON list with at least one message, not {reprlib.repr(messages)}")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadRequestError(
                f"every message must be an object whose role and content are strings, not {reprlib.repr(message)}"
            )
        if not is_unicode(message["content"]):
            # JSON can spell half of a surrogate pair, which no tokenizer takes.
            raise BadRequestError(f"a message holds half a character: {reprlib.repr(message)}")
    return messages


def is_unicode(text: str) -> bool:
    """Return whether `text` has no half of a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


class Detokenizer:
    """A growing list of tokens, turned into text one piece at a time.

    A token may be part of a character, and its text may depend on the tokens before it, so text is
    the difference between two decodings of the same short window.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-PROMPT_TAIL:])
        self._done = len(self._window)  # tokens of the window whose text is out already

    def push(self, token: int) -> str:
        """Return the new text, which is empty in the middle of a character."""
        self._window.append(token)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._done :]
        self._done = len(self._window)
        return text

    def flush(self) -> str:
        """Return the rest at the end, without the half character that it may end in."""
        return self._new_text().rstrip(REPLACEMENT)

    def _new_text(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._done])) :]


class StopFilter:
    """A filter that cuts text at the first stop string; text that may be the start of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may go out now, and whether a stop string was found."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return the text that still waits: no stop string can follow any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def sample(logits: torch.Tensor, sampling: Sampling, rng: torch.Generator) -> int:
    """Pick the next token: temperature, then top_k, then top_p, in vLLM's order."""
    import torch

    if bool(torch.isnan(logits).any()):
        # Checked here because on a GPU multinomial() would fail an assertion, and every later
        # request with it.
        raise RuntimeError("the model produced NaN; try dtype bfloat16 or float32")
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    logits, tokens = (logits.float() / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        logits = logits[: sampling.top_k]
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    return int(tokens[torch.multinomial(probabilities, 1, generator=rng)])
