"""A Triton Python-backend model: a Hugging Face causal language model, decoupled.

The launcher renders this file as `<repository>/<model>/1/model.py` and writes a config.pbtxt beside
it with what `initialize` reads. Tensor names and meanings are those of Triton's vLLM backend,
so its clients work unchanged; `messages` (a JSON list of {role, content}, to which the model's own
chat template is applied) is ours. As there, sampling parameters come as JSON in
`sampling_parameters` or else as request parameters, and their defaults are vLLM's: temperature 1.0
(0 is greedy), top_p 1.0, top_k 0 (off), max_tokens 16.

`execute` only reads a request and hands it to a thread, so requests run side by side.
"""

from __future__ import annotations

import os
import reprlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import triton_python_backend_utils as pb_utils
from bad_request import BadRequestError
from decoding import Sampling, parse_messages
from hugging_face import threads_per_worker
from language_model import LanguageModel, Piece, pieces
from triton_model import RequestCancelledError, end_with_server, error_of, parameters, text_of, whole_number


class ServerGoneError(Exception):
    """The tritonserver is dead, and a call to it would wait for ever."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, read and checked."""

    text: str | None
    messages: list[dict[str, object]] | None
    sampling: Sampling
    stream: bool
    echo: bool  #: put the prompt before the answer
    want_finish_reason: bool
    want_input_tokens: bool
    want_output_tokens: bool

    @classmethod
    def from_request(cls, request: pb_utils.InferenceRequest) -> Ask:
        """Read a request's tensors and parameters. Raises `BadRequestError`."""
        text, messages = _text(request, "text_input"), _text(request, "messages")
        if (text is None) == (messages is None):
            count = "neither" if text is None else "both"
            raise BadRequestError(f"give either text_input or messages; {count} given")
        stream = bool(_flag(request, "stream"))
        exclude_input = _flag(request, "exclude_input_in_output")
        if stream and exclude_input is False:
            raise BadRequestError("exclude_input_in_output = false is not possible with stream = true")
        return cls(
            text=text,
            messages=None if messages is None else parse_messages(messages),
            sampling=_read_sampling(request),
            stream=stream,
            echo=not stream and not exclude_input,
            want_finish_reason=bool(_flag(request, "return_finish_reason")),
            want_input_tokens=bool(_flag(request, "return_num_input_tokens")),
            want_output_tokens=bool(_flag(request, "return_num_output_tokens")),
        )


def _read_sampling(request: pb_utils.InferenceRequest) -> Sampling:
    tensor = _text(request, "sampling_parameters")
    given: str = request.parameters()  # JSON; empty where there are none
    if tensor is not None and given not in ("", "{}"):
        raise BadRequestError(
            "sampling parameters given both in sampling_parameters and as request parameters "
            f"{reprlib.repr(given)}; use one of them"
        )
    return Sampling.from_json(tensor if tensor is not None else given or "{}")


def _text(request: pb_utils.InferenceRequest, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else text_of(name, tensor.as_numpy().reshape(-1)[0])


def _flag(request: pb_utils.InferenceRequest, name: str) -> bool | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else bool(tensor.as_numpy().reshape(-1)[0])


class Reply:
    """The responses to one request."""

    def __init__(self, sender: pb_utils.InferenceResponseSender) -> None:
        self._sender = sender
        self._server = os.getppid()
        self._closed = False

    def check(self) -> None:
        """Raise `ServerGoneError` if Triton is gone, `RequestCancelledError` if the client withdrew the request."""
        if os.getppid() != self._server:
            raise ServerGoneError
        if self._sender.is_cancelled():
            raise RequestCancelledError

    def send(self, ask: Ask, piece: Piece, input_tokens: int) -> None:
        """Send a piece; the last one, with a finish reason, ends the responses."""
        tensors = [_bytes_tensor("text_output", piece.text)]
        if ask.want_finish_reason:
            # The vLLM backend says "None" until the last response.
            tensors.append(_bytes_tensor("finish_reason", str(piece.finish_reason)))
        if ask.want_input_tokens:
            tensors.append(_count_tensor("num_input_tokens", input_tokens))
        if ask.want_output_tokens:
            tensors.append(_count_tensor("num_output_tokens", piece.tokens))
        response = pb_utils.InferenceResponse(output_tensors=tensors)
        if piece.finish_reason is None:
            self._sender.send(response)
        else:
            self._close(response)

    def fail(self, message: str, code: int) -> None:
        """End the responses with an error; nothing is sent if they have ended already."""
        if not self._closed:
            self._close(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)))

    def _close(self, response: pb_utils.InferenceResponse) -> None:
        self._closed = True  # first, because a second final response would fell the stub
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _bytes_tensor(name: str, text: str) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=np.object_))


def _count_tensor(name: str, count: int) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([count], dtype=np.uint32))


def answer(model: LanguageModel, ask: Ask, reply: Reply) -> None:
    """Generate and send; blocks until the last response is out. Raises the model's and the request's errors."""
    reply.check()  # it may have waited long for a thread
    prompt = model.prompt(ask.text, ask.messages)
    parts = []
    for piece in pieces(model, prompt.tokens, ask.sampling, reply.check):
        if ask.stream:
            reply.send(ask, piece, len(prompt.tokens))
        else:
            parts.append(piece)
    if not ask.stream:
        whole = (prompt.text if ask.echo else "") + "".join(part.text for part in parts)
        tokens = sum(part.tokens for part in parts)
        reply.send(ask, Piece(whole, tokens, parts[-1].finish_reason), len(prompt.tokens))


@contextmanager
def failures_go_to(reply: Reply) -> Iterator[None]:
    """Turn an exception of the block into this request's response, so that it does not fell the others."""
    try:
        try:
            yield
        except ServerGoneError:
            pass  # nobody is left to tell
        except Exception as exc:  # noqa: BLE001
            reply.fail(*error_of(exc))
    except Exception:  # noqa: BLE001  # the response could not be sent
        pb_utils.Logger.log_error(traceback.format_exc())


class TritonPythonModel:
    """The class that Triton loads; it calls these methods from one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model and warm it up; Triton calls this once."""
        import torch

        end_with_server()
        given = parameters(args)
        workers = whole_number(given, "workers", default=2, low=1)
        threads = threads_per_worker(workers)
        torch.set_num_threads(threads)
        self._model = LanguageModel(
            given["model_path"],
            device=given.get("device", "cpu"),
            dtype=given.get("dtype", "auto"),
            max_context=whole_number(given, "max_context", default=0, low=0),
        )
        self._model.warm_up()
        # torch keeps the thread count per thread, so each worker sets its own.
        self._pool = ThreadPoolExecutor(workers, "generate", initializer=torch.set_num_threads, initargs=(threads,))
        pb_utils.Logger.log_info(
            f"{given['model_path']} on {given.get('device', 'cpu')}: context {self._model.context}, "
            f"{workers} workers of {threads} torch threads"
        )

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Start each request; the answers are sent from the pool's threads."""
        for request in requests:
            reply = Reply(request.get_response_sender())
            with failures_go_to(reply):
                ask = Ask.from_request(request)
                self._pool.submit(self._serve, ask, reply)

    def _serve(self, ask: Ask, reply: Reply) -> None:
        with failures_go_to(reply):
            answer(self._model, ask, reply)

    def finalize(self) -> None:
        """Wait for the requests that were accepted, then stop the threads."""
        self._pool.shutdown(wait=True)
