"""A client for servers that speak OpenAI's HTTP API: completions, chat completions, embeddings; SSE streaming.

Source: the OpenAI API reference, as llama.cpp's server, vLLM and Transformers implement it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engines.base import (
    Chunk,
    EmbedRequest,
    GenerateRequest,
    HttpCheck,
    InferenceError,
    Probes,
    Request,
    ServeSpec,
    Target,
    TensorRequest,
    Vector,
)
from engines.json_http import JsonHttp


def probes(spec: ServeSpec, progress: tuple[str, ...] = ()) -> Probes:
    """Return probes for a server whose /health answers 200 as soon as it serves, and asks for no key."""
    health = HttpCheck("/health")
    if spec.model.task == "embed":
        body: Mapping[str, Any] = {"model": spec.model.id, "input": "a"}
        canary = HttpCheck("/v1/embeddings", "POST", body, expect="data.0.embedding")
    else:
        body = {"model": spec.model.id, "prompt": "a", "max_tokens": 1}
        canary = HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens")
    return Probes(startup=health, readiness=canary, liveness=canary, settings=spec.probes, progress=progress)


class OpenAIClient:
    """A client that keeps connections open between requests; safe to use from several threads.

    `prefix` stands before every path of the API, after the path of the target's endpoint; `proxies` as in `JsonHttp`.
    """

    def __init__(self, *, prefix: str = "/v1", proxies: bool = False) -> None:
        self._prefix = prefix
        self._http = JsonHttp(proxies=proxies)

    def infer(
        self, target: Target, request: Request, fields: Mapping[str, str | None] | None = None
    ) -> Iterator[Chunk | Vector]:
        """Do what `Engine.infer` does.

        `fields` renames fields of the request for servers that call them otherwise; None as the new name leaves one
        out.
        """
        if isinstance(request, TensorRequest):
            raise InferenceError("a server with OpenAI's API takes texts and messages, no tensors")
        if isinstance(request, EmbedRequest):
            return self._embed(target, request)
        path, body = _generation(target, request)
        body = renamed(body, fields or {})
        if request.stream:
            return self._stream(target, path, body)
        return self._complete(target, path, body)

    def close(self) -> None:
        """Close the kept connections."""
        self._http.close()

    def _complete(self, target: Target, path: str, body: Mapping[str, Any]) -> Iterator[Chunk]:
        answer = self._http.post(target, f"{self._prefix}{path}", body)
        choices = answer.get("choices")
        if not choices:
            raise InferenceError(f"the server answered 200 without choices: {answer}")
        yield Chunk(_text(choices[0]), choices[0].get("finish_reason"), *_usage(answer))

    def _stream(self, target: Target, path: str, body: Mapping[str, Any]) -> Iterator[Chunk]:
        finish_reason: str | None = None
        for event in self._http.events(target, f"{self._prefix}{path}", body):
            for choice in event.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                if text := _text(choice):
                    yield Chunk(text)
            if event.get("usage"):
                yield Chunk("", finish_reason, *_usage(event))
        if finish_reason is None:  # a connection that is closed in good order looks like the end of the text
            raise InferenceError("the stream ended before the text did: no finish_reason came")

    def _embed(self, target: Target, request: EmbedRequest) -> Iterator[Vector]:
        body = {"model": target.model_id, "input": list(request.texts)}
        answer = self._http.post(target, f"{self._prefix}/embeddings", body)
        rows = answer.get("data") or ()
        if len(rows) != len(request.texts):
            raise InferenceError(f"the server answered {len(rows)} embeddings to {len(request.texts)} texts")
        for row in sorted(rows, key=lambda row: int(row["index"])):
            yield Vector(tuple(row["embedding"]))


def _generation(target: Target, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": target.model_id, **request.sampling.as_json()}
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": request.usage}}
    if request.messages is not None:
        return "/chat/completions", {**body, "messages": [dict(message) for message in request.messages]}
    return "/completions", {**body, "prompt": request.prompt}


def renamed(body: Mapping[str, Any], fields: Mapping[str, str | None]) -> dict[str, Any]:
    """Return `body` with its keys renamed by `fields`; a key that becomes None is left out.

    `{"max_tokens": 8}` becomes `{"max_completion_tokens": 8}` with `{"max_tokens": "max_completion_tokens"}`.
    """
    names = {name: fields.get(name, name) for name in body}
    return {new: body[name] for name, new in names.items() if new is not None}


def _usage(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _text(choice: Mapping[str, Any]) -> str:
    part = choice.get("delta") or choice.get("message") or choice
    return str(part.get("content") or part.get("text") or "")
