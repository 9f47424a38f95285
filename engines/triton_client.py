"""A client for Triton: text over gRPC streams or the HTTP generate extension; embeddings and tensors by KServe v2.

Both protocols carry the same tensors. tritonclient has no call for the generate extension, and its plain HTTP call
cannot reach a decoupled model: hence `JsonHttp` there.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from engines.base import (
    Answer,
    Chunk,
    EmbedRequest,
    GenerateRequest,
    InferenceError,
    Request,
    Target,
    TensorRequest,
    Tensors,
    Vector,
)
from engines.triton_tensors import GrpcTensors, HttpTensors, bytes_array, utf8


class TritonClient:
    """A client that keeps connections and gRPC streams open between requests; safe to use from several threads."""

    def __init__(self) -> None:
        self._http = HttpTensors()
        self._grpc = GrpcTensors()
        self._idle: list[_Stream] = []
        self._lock = threading.Lock()

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Do what `Engine.infer` does, over HTTP if the target's options say so, else over gRPC."""
        over_http = target.options.get("protocol") == "http"
        if isinstance(request, GenerateRequest):
            return self._over_http(target, request) if over_http else self._over_grpc(target, request)
        tensors = self._http if over_http else self._grpc
        return _embed(tensors, target, request) if isinstance(request, EmbedRequest) else _run(tensors, target, request)

    def close(self) -> None:
        """Close connections and idle streams; a stream in use closes with its request."""
        with self._lock:
            streams, self._idle = self._idle, []
        for stream in streams:
            stream.close()
        self._grpc.close()
        self._http.close()

    def _over_http(self, target: Target, request: GenerateRequest) -> Iterator[Chunk]:
        url = f"/v2/models/{target.model_id}/generate"
        tensors = _tensors(request)
        if request.stream:
            for event in self._http.events(target, f"{url}_stream", tensors):
                yield _chunk(event)
        else:
            yield _chunk(self._http.post(target, url, tensors))

    def _over_grpc(self, target: Target, request: GenerateRequest) -> Iterator[Chunk]:
        tensors = _tensors(request)
        stream = self._sent(target, tensors)
        finished = False
        try:
            yield from stream.answers(target)
            finished = True
        finally:
            if finished:
                with self._lock:
                    self._idle.append(stream)
            else:
                stream.close()  # cancels what still runs on it

    def _sent(self, target: Target, tensors: Mapping[str, Any]) -> _Stream:
        """Return a stream that has taken the request: an idle one that still lives, else a new one."""
        while True:
            with self._lock:
                stream = self._idle.pop() if self._idle else None
            if stream is None:
                break
            if stream.alive():
                try:
                    stream.send(target, tensors)
                except InferenceError:
                    pass
                else:
                    return stream
            stream.close()  # the server has been restarted since then
        stream = _Stream(str(target.endpoints.grpc))
        stream.send(target, tensors)
        return stream


def _run(tensors: GrpcTensors | HttpTensors, target: Target, request: TensorRequest) -> Iterator[Tensors]:
    yield Tensors(tensors.infer(target, request.inputs))


def _embed(tensors: GrpcTensors | HttpTensors, target: Target, request: EmbedRequest) -> Iterator[Vector]:
    rows = tensors.infer(target, {"text_input": bytes_array(request.texts)})["embedding"]
    for row in rows.tolist():
        yield Vector(tuple(row))


class _Stream:
    """One bidirectional gRPC stream, used for one request at a time."""

    def __init__(self, address: str) -> None:
        import numpy
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        self._numpy, self._new_input, self._failure = numpy, triton.InferInput, InferenceServerException
        self._flags: dict[str, Any] = {}  #: tensors that say True; they never change, so each is made once
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        # A proxy has no place between us and a server that we started.
        self._client = triton.InferenceServerClient(address, channel_args=[("grpc.enable_http_proxy", 0)])
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def alive(self) -> bool:
        """Return whether nothing has come since the last answer: anything then is the end of the stream."""
        return self._answers.empty()

    def send(self, target: Target, tensors: Mapping[str, Any]) -> None:
        inputs = [self._flag(name) if value is True else self._text(name, value) for name, value in tensors.items()]
        try:
            # An empty answer closes the request where the last text could not be known to be the last.
            self._client.async_stream_infer(target.model_id, inputs, enable_empty_final_response=True)
        except self._failure as exc:
            raise InferenceError(str(exc.message()), exc.status()) from exc

    def answers(self, target: Target) -> Iterator[Chunk]:
        while True:
            try:
                result, error = self._answers.get(timeout=target.timeout_s)
            except queue.Empty:
                raise InferenceError(f"no answer from {target.endpoints.grpc} for {target.timeout_s:g} s") from None
            if error is not None:
                raise InferenceError(str(error.message()), error.status())
            response = result.get_response()
            if response.outputs:
                yield _chunk(_values(response))
            if response.parameters["triton_final_response"].bool_param:
                return

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a dead server is no reason to fail a close
            self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def _text(self, name: str, value: str) -> Any:
        tensor = self._new_input(name, [1], "BYTES")
        return tensor.set_data_from_numpy(self._numpy.array([utf8(value)], dtype=object))

    def _flag(self, name: str) -> Any:
        if name not in self._flags:
            tensor = self._new_input(name, [1], "BOOL")
            self._flags[name] = tensor.set_data_from_numpy(self._numpy.array([True]))
        return self._flags[name]


def _tensors(request: GenerateRequest) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        "sampling_parameters": json.dumps(request.sampling.as_json()),
        "exclude_input_in_output": True,
    }
    if request.stream:
        tensors["stream"] = True
    if request.usage:
        tensors |= {"return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    if request.messages is not None:
        tensors["messages"] = json.dumps([dict(message) for message in request.messages])
    else:
        tensors["text_input"] = request.prompt
    return tensors


def _values(response: Any) -> dict[str, Any]:
    """Return each output tensor's one value, straight from KServe's binary form: one-element arrays cost more."""
    values: dict[str, Any] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        # A BYTES element is its length in 4 bytes and itself; the others are UINT32.
        values[tensor.name] = raw[4:].decode() if tensor.datatype == "BYTES" else int.from_bytes(raw, "little")
    return values


def _chunk(outputs: Mapping[str, Any]) -> Chunk:
    reason = outputs.get("finish_reason")
    return Chunk(
        text=str(outputs.get("text_output", "")),
        finish_reason=str(reason) if reason and reason != "None" else None,
        prompt_tokens=outputs.get("num_input_tokens"),
        completion_tokens=outputs.get("num_output_tokens"),
    )
