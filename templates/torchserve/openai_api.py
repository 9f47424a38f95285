"""Read and check requests of OpenAI's completions, chat completions and embeddings, and write the answers.

TorchServe passes on the rest of the path after a model's name and version, so that its OpenAI API is at
/predictions/<model>/<version>/v1.
"""

from __future__ import annotations

import base64
import json
import reprlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bad_request import BadRequestError
from decoding import Sampling, is_unicode, parse_json, parse_messages
from torchserve_worker import NotThereError, Request

if TYPE_CHECKING:
    import numpy

COMPLETIONS, CHAT, EMBEDDINGS, MODELS = "v1/completions", "v1/chat/completions", "v1/embeddings", "v1/models"

_MOST = 2**31 - 1  # tokens: as many as the context holds

#: keys that change nothing with these values, which some clients send always; `None` is always one of them
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
_ANY_VALUE = ("user", "store", "metadata", "service_tier", "stream_options")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for text, read and checked."""

    text: str | None
    messages: list[dict[str, object]] | None
    sampling: Sampling
    stream: bool
    usage: bool  #: say at the end of a stream how many tokens it took

    @property
    def chat(self) -> bool:
        """True for messages, False for a text to continue."""
        return self.messages is not None

    @classmethod
    def of(cls, request: Request, model: str) -> Ask:
        """Read a request for `model`. Raises `BadRequestError` that names the key and the value."""
        given = _given(request, model)
        path = request.path or (CHAT if "messages" in given else COMPLETIONS)
        if path not in (COMPLETIONS, CHAT):
            raise NotThereError(f"there is no /{path} here; there are /{COMPLETIONS}, /{CHAT} and /{MODELS}")
        text = messages = None
        if path == CHAT:
            messages = parse_messages(json.dumps(given.pop("messages", None)))
            # OpenAI's default for a chat, and its newer name for it
            given["max_tokens"] = given.pop("max_completion_tokens", None) or given.get("max_tokens", _MOST)
        else:
            text = _one_text(given.pop("prompt", None))
        stream = _flag("stream", given.pop("stream", None))
        options = given.get("stream_options") or {}
        if not isinstance(options, Mapping):
            raise BadRequestError(f"stream_options must be an object, not {reprlib.repr(options)}")
        usage = _flag("stream_options.include_usage", options.get("include_usage"))
        return cls(text, messages, Sampling.from_json(json.dumps(_with_effect(given))), stream, usage)


def is_list_of_models(request: Request) -> bool:
    """Return whether the request asks for the list of models."""
    return request.path == MODELS


def list_of_models(model: str) -> bytes:
    """Return the list's JSON: the one model that is served."""
    return _json({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "torchserve"}]})


class Answer:
    """The answer to `ask`, whole or in events."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask = ask
        kind = "chat.completion" if ask.chat else "text_completion"
        self.id = f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {
            "id": self.id,
            "object": f"{kind}.chunk" if ask.chat and ask.stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish_reason: str | None, tokens: tuple[int, int]) -> bytes:
        """Return the whole answer as JSON; `tokens` are the counts of the prompt and of the answer."""
        part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._ask.chat else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}
        return _json({**self._head, "choices": [choice], "usage": _usage(*tokens)})

    def event(self, text: str, finish_reason: str | None) -> bytes:
        """Return one server-sent event with a part of the answer; `finish_reason` is None until the last."""
        part: dict[str, Any] = {"delta": {"role": "assistant", "content": text}} if self._ask.chat else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}
        return _event(_json({**self._head, "choices": [choice]}))

    def end(self, tokens: tuple[int, int]) -> bytes:
        """Return the last event of a stream, before it the usage if the request wants it."""
        usage = _event(_json({**self._head, "choices": [], "usage": _usage(*tokens)})) if self._ask.usage else b""
        return usage + _event(b"[DONE]")


def texts_to_embed(request: Request, model: str) -> tuple[list[str], bool]:
    """Return the texts, and whether to pack their vectors. Raises `BadRequestError` that names key and value."""
    given = _given(request, model)
    if request.path not in ("", EMBEDDINGS):
        raise NotThereError(f"there is no /{request.path} here; there are /{EMBEDDINGS} and /{MODELS}")
    texts = given.pop("input", None)
    encoding = given.pop("encoding_format", None)
    if encoding not in (None, "float", "base64"):
        raise BadRequestError(f"encoding_format must be float or base64, not {reprlib.repr(encoding)}")
    if unknown := [key for key in given if key not in _ANY_VALUE]:
        raise BadRequestError(f"unknown key {unknown[0]!r}; known: input, model, encoding_format")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequestError(f"input must be a text or a list of texts, not {reprlib.repr(texts)}")
    for number, text in enumerate(texts):
        if not is_unicode(text):
            raise BadRequestError(f"text {number} holds half a character: {reprlib.repr(text)}")
    return texts, encoding == "base64"


def pack(vector: numpy.ndarray[Any, Any]) -> str:
    """Pack a vector as OpenAI does: float32, little-endian, in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def embeddings(vectors: Iterable[Sequence[float] | str], model: str, tokens: int) -> bytes:
    """Return the answer's JSON: a vector per text, packed or not; `tokens` is the count of all texts."""
    rows = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": rows, "model": model, "usage": usage})


def _given(request: Request, model: str) -> dict[str, Any]:
    """Return the JSON object in the body, without the model's name, which is checked."""
    try:
        text = request.body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequestError(f"the body is not UTF-8: {exc}") from exc
    given = parse_json("the body", text)
    if not isinstance(given, dict):
        raise BadRequestError(f"the body must be a JSON object, not {reprlib.repr(given)}")
    named = given.pop("model", None) or model
    if named != model:
        raise NotThereError(f"there is no model {reprlib.repr(named)} here; there is {model!r}")
    return given


def _one_text(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise BadRequestError(f"prompt must be one text, not {reprlib.repr(prompt)}")
    if not is_unicode(prompt):
        raise BadRequestError(f"prompt holds half a character: {reprlib.repr(prompt)}")
    return prompt


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | None):
        raise BadRequestError(f"{name} must be true or false, not {reprlib.repr(value)}")
    return bool(value)


def _with_effect(given: Mapping[str, object]) -> dict[str, object]:
    """Return `given` without keys of no effect. Raises `BadRequestError` for a key whose effect is not possible."""
    left = {}
    for key, value in given.items():
        if key in _ANY_VALUE or value is None:
            continue
        if key not in _WITHOUT_EFFECT:
            left[key] = value
        elif value not in _WITHOUT_EFFECT[key]:
            raise BadRequestError(f"{key} = {reprlib.repr(value)} is not possible here")
    return left


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
