"""A client for servers that speak OpenAI's HTTP API: completions, chat completions, embeddings; SSE streaming.

Source: the OpenAI API reference, as llama.cpp's server and vLLM implement it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engines.base import Chunk, EmbedRequest, GenerateRequest, InferenceError, Request, Target, Vector
from engines.json_http import JsonHttp


class OpenAIClient:
    """Keeps connections open between requests; safe to use from several threads."""

    def __init__(self) -> None:
        self._http = JsonHttp()

    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        """As `Engine.infer`."""
        if isinstance(request, EmbedRequest):
            return self._embed(target, request)
        if request.stream:
            return self._stream(target, request)
        return self._complete(target, request)

    def close(self) -> None:
        self._http.close()

    def _complete(self, target: Target, request: GenerateRequest) -> Iterator[Chunk]:
        answer = self._http.post(target, *_generation(target, request))
        choices = answer.get("choices")
        if not choices:
            raise InferenceError(f"the server answered 200 without choices: {answer}")
        yield Chunk(_text(choices[0]), choices[0].get("finish_reason"), *_usage(answer))

    def _stream(self, target: Target, request: GenerateRequest) -> Iterator[Chunk]:
        finish_reason: str | None = None
        for event in self._http.events(target, *_generation(target, request)):
            for choice in event.get("choices", ()):
                finish_reason = choice.get("finish_reason") or finish_reason
                if text := _text(choice):
                    yield Chunk(text)
            if event.get("usage"):
                yield Chunk("", finish_reason, *_usage(event))

    def _embed(self, target: Target, request: EmbedRequest) -> Iterator[Vector]:
        body = {"model": target.model_id, "input": list(request.texts)}
        rows = self._http.post(target, "/v1/embeddings", body)["data"]
        for row in sorted(rows, key=lambda row: int(row["index"])):
            yield Vector(tuple(row["embedding"]))


def _generation(target: Target, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": target.model_id, **request.sampling.as_json()}
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": request.usage}}
    if request.messages is not None:
        return "/v1/chat/completions", {**body, "messages": [dict(message) for message in request.messages]}
    return "/v1/completions", {**body, "prompt": request.prompt}


def _usage(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _text(choice: Mapping[str, Any]) -> str:
    part = choice.get("delta") or choice.get("message") or choice
    return str(part.get("content") or part.get("text") or "")
