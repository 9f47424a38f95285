"""OpenAI's calls for Triton: text by the HTTP generate extension, embeddings by KServe's v2 protocol, both as JSON."""

from __future__ import annotations

import base64
import json
import reprlib
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from engines.dialect import CHAT, DONE, EMBEDDINGS, Call, Dialect, Events, refused
from engines.errors import InferenceError

#: field → values that change nothing, which some clients always send; null is one of them for every field
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
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "stream": (True, False),
}
_ANY_VALUE = frozenset({"model", "user", "store", "metadata", "service_tier", "stream_options", "parallel_tool_calls"})
_SAMPLING = ("temperature", "top_p", "top_k", "stop", "seed")
_MOST = 2**31 - 1  #: tokens: as many as the context holds, which is OpenAI's default for a chat


class TritonOpenAI(Dialect):
    """The dialect of a repository that engines/triton_repository.py writes, or that has Triton's vLLM backend."""

    def __init__(self, model: str, task: str, *, chat: bool) -> None:
        """Keep the model's name and its task; `chat` is whether the model takes messages."""
        self._model = model
        self._task = task
        self._chat = chat

    def request(self, call: Call) -> tuple[str, bytes]:
        """Return a call of the generate extension, or of KServe's `infer` for embeddings."""
        path = f"/v2/models/{self._model}"
        wanted = "embed" if call.path == EMBEDDINGS else "generate"
        if self._task != wanted:
            raise refused(f"this deployment serves model.task={self._task}, and /v1{call.path} needs {wanted}")
        if wanted == "embed":
            return f"{path}/infer", json.dumps({"inputs": [_strings("text_input", _texts(call.fields))]}).encode()
        tensors = {
            **self._asked(call),
            "sampling_parameters": json.dumps(_sampling(call)),
            "exclude_input_in_output": True,
            "return_finish_reason": True,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
        }
        if call.stream:
            return f"{path}/generate_stream", json.dumps({**tensors, "stream": True}).encode()
        return f"{path}/generate", json.dumps(tensors).encode()

    def whole(self, call: Call, body: bytes) -> bytes:
        """Return a completion, a chat completion or embeddings, with the counts of tokens."""
        answer = _object(body)
        if call.path == EMBEDDINGS:
            return _embeddings(call, answer)
        text = str(answer.get("text_output", ""))
        part = {"message": {"role": "assistant", "content": text}} if call.path == CHAT else {"text": text}
        return _json({**_head(call), "choices": [_choice(part, _reason(answer))], "usage": _usage(answer)})

    def events(self, call: Call) -> Events:
        """Return the translator of one generate stream."""
        return _Stream(call)

    def _asked(self, call: Call) -> dict[str, Any]:
        if call.path == CHAT:
            if not self._chat:
                raise refused("this deployment continues a text (/v1/completions) and takes no messages")
            return {"messages": json.dumps(_messages(call.fields.get("messages")))}
        prompt = call.fields.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            (prompt,) = prompt
        if not isinstance(prompt, str):
            raise refused(f"prompt must be one text, not {reprlib.repr(prompt)}")
        return {"text_input": prompt}


class _Stream(Events):
    def __init__(self, call: Call) -> None:
        self._call = call
        self._head = _head(call)
        self._begun = False
        self._reason: str | None = None
        self._prompt, self._completion = 0, 0

    def event(self, data: bytes) -> bytes:
        answer = _object(data)
        self._prompt = int(answer.get("num_input_tokens") or self._prompt)
        self._completion += int(answer.get("num_output_tokens") or 0)
        self._reason = _reason(answer)
        text = str(answer.get("text_output", ""))
        if self._call.path != CHAT:
            return self._said({"text": text})
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return self._said({"delta": {**role, "content": text}})

    def end(self) -> bytes:
        if self._reason is None:
            raise InferenceError("the stream ended before the text did")
        if not self._call.wants_usage:
            return DONE
        usage = _counts(self._prompt, self._completion)
        return _sse({**self._head, "choices": [], "usage": usage}) + DONE

    def _said(self, part: Mapping[str, Any]) -> bytes:
        usage = {"usage": None} if self._call.wants_usage else {}
        return _sse({**self._head, "choices": [_choice(part, self._reason)], **usage})


def _head(call: Call) -> dict[str, Any]:
    chat = call.path == CHAT
    kind = ("chat.completion.chunk" if call.stream else "chat.completion") if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": call.fields.get("model"),
    }


def _choice(part: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": reason}


def _reason(answer: Mapping[str, Any]) -> str | None:
    reason = answer.get("finish_reason")
    return None if reason in (None, "", "None") else str(reason)  # Triton's vLLM backend says "None" until the last


def _usage(answer: Mapping[str, Any]) -> dict[str, int]:
    return _counts(int(answer.get("num_input_tokens") or 0), int(answer.get("num_output_tokens") or 0))


def _counts(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _sampling(call: Call) -> dict[str, Any]:
    """Return the sampling parameters. Raises `InferenceError` for a field that has an effect, but not here."""
    fields = call.fields
    asked = {"messages", "max_completion_tokens"} if call.path == CHAT else {"prompt"}
    for key, value in fields.items():
        if value is None or key in _ANY_VALUE or key in _SAMPLING or key in asked or key == "max_tokens":
            continue
        if key not in _WITHOUT_EFFECT:
            raise refused(f"{key} is not known to this deployment (triton); leave it out")
        if value not in _WITHOUT_EFFECT[key]:
            raise refused(f"{key} = {reprlib.repr(value)} is not possible on this deployment (triton)")
    given = {key: fields[key] for key in _SAMPLING if fields.get(key) is not None}
    most = fields.get("max_completion_tokens") if call.path == CHAT else None
    most = fields.get("max_tokens") if most is None else most
    if most is None and call.path == CHAT:
        most = _MOST
    return given if most is None else {**given, "max_tokens": most}


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise refused(f"messages must be a list with at least one message, not {reprlib.repr(messages)}")
    return [_message(message) for message in messages]


def _message(message: object) -> dict[str, Any]:
    """Return the message with its content as one text, which is what chat templates take."""
    if not isinstance(message, Mapping):
        raise refused(f"a message must be an object, not {reprlib.repr(message)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise refused("this deployment takes texts alone as parts of a message")
        return {**message, "content": "".join(map(str, texts))}
    return dict(message)


def _texts(fields: Mapping[str, Any]) -> list[str]:
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise refused(f"input must be a text or a list of texts, not {reprlib.repr(given)}")
    if fields.get("encoding_format") not in (None, "float", "base64"):
        raise refused(f"encoding_format must be float or base64, not {reprlib.repr(fields['encoding_format'])}")
    if fields.get("dimensions") is not None:
        raise refused("dimensions is not possible on this deployment (triton)")
    return texts


def _strings(name: str, values: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": values}


def _embeddings(call: Call, answer: Mapping[str, Any]) -> bytes:
    outputs = {output["name"]: output for output in answer.get("outputs", ())}
    if "embedding" not in outputs:
        raise InferenceError(f"the server answered 200 without embeddings: {reprlib.repr(answer)}")
    if "num_input_tokens" not in outputs or len(outputs["embedding"].get("shape", ())) != 2:
        raise InferenceError(f"its embeddings are not those of our handler: {reprlib.repr(answer)}")
    rows, size = outputs["embedding"]["shape"]
    values = outputs["embedding"]["data"]
    if rows != len(_texts(call.fields)) or rows * size != len(values):
        raise InferenceError(f"its embeddings have the shape {rows} × {size} and {len(values)} numbers")
    vectors = [values[row * size : (row + 1) * size] for row in range(rows)]
    packed = call.fields.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": number, "embedding": _packed(vector) if packed else vector}
        for number, vector in enumerate(vectors)
    ]
    tokens = sum(outputs["num_input_tokens"]["data"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": call.fields.get("model"), "usage": usage})


def _packed(vector: Sequence[float]) -> str:
    """Return the vector as OpenAI packs it: float32, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as exc:
        raise InferenceError(f"the server answered no JSON: {reprlib.repr(body)}") from exc
    if not isinstance(answer, dict):
        raise InferenceError(f"the server answered {reprlib.repr(answer)}")
    if answer.get("error"):
        raise InferenceError(str(answer["error"]))
    return answer


def _sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")  # half a character cannot be encoded
