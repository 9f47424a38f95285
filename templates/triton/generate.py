"""A Triton Python-backend model: one Hugging Face causal language model, decoupled.

The launcher renders this file as `<repository>/<model>/1/model.py` and writes a config.pbtxt beside
it with the parameters of `Options`. Tensor names and meanings are those of Triton's vLLM backend,
so its clients work unchanged; `messages` (a JSON list of {role, content}, to which the model's own
chat template is applied) is ours. Like there, sampling parameters come as JSON in
`sampling_parameters` or else as request parameters, and their defaults are vLLM's: temperature 1.0
(0 is greedy), top_p 1.0, top_k 0 (off), max_tokens 16.

`execute` only reads a request and hands it to a thread, so requests run side by side; each has its
own random generator, and a seed gives the same text whatever else is running.
"""

from __future__ import annotations

import inspect
import json
import os
import reprlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import triton_python_backend_utils as pb_utils
from decoding import BadRequestError, Detokenizer, Sampling, StopFilter, parse_messages, sample

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

PREFILL_CHUNK = 512  # tokens; a cancelled request is noticed between two chunks
SERVER_POLL_S = 0.5
ORPHAN_GRACE_S = 3.0  # for the stub's own end, which also removes its shared memory
DTYPES = ("auto", "bfloat16", "float16", "float32")


class RequestCancelledError(Exception):
    """The client went away or withdrew the request."""


class ServerGoneError(Exception):
    """tritonserver is dead, and a call to it would wait for ever."""


@dataclass(frozen=True, slots=True)
class Options:
    """The `parameters` of config.pbtxt."""

    model_path: str
    device: str
    dtype: str
    max_context: int  #: 0: as far as the model goes
    workers: int

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Options:
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        if "model_path" not in given or not Path(given["model_path"]).is_dir():
            raise ValueError(f"model_path is not a folder: {given.get('model_path')!r}")
        if given.get("dtype", "auto") not in DTYPES:
            raise ValueError(f"dtype {given['dtype']!r} is not one of {', '.join(DTYPES)}")
        return cls(
            model_path=given["model_path"],
            device=given.get("device", "cpu"),
            dtype=given.get("dtype", "auto"),
            max_context=_whole_number(given, "max_context", default=0, low=0),
            workers=_whole_number(given, "workers", default=2, low=1),
        )


def _whole_number(given: Mapping[str, str], name: str, *, default: int, low: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) < low:
        raise ValueError(f"{name} must be a whole number from {low}, not {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read and checked."""

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
    parameters: str = request.parameters()  # JSON; empty where there are none
    if tensor is not None and parameters not in ("", "{}"):
        raise BadRequestError(
            "sampling parameters given both in sampling_parameters and as request parameters "
            f"{reprlib.repr(parameters)}; use one of them"
        )
    return Sampling.from_json(tensor if tensor is not None else parameters or "{}")


def _text(request: pb_utils.InferenceRequest, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    value: bytes = tensor.as_numpy().reshape(-1)[0]
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequestError(f"{name} is not UTF-8: {exc}") from exc


def _flag(request: pb_utils.InferenceRequest, name: str) -> bool | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else bool(tensor.as_numpy().reshape(-1)[0])


class LanguageModel:
    """The model and its tokenizer. Several threads may use it at once."""

    def __init__(self, options: Options) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {options.device!r}: torch {torch.__version__} sees no GPU")
        where, rules = options.model_path, {"local_files_only": True, "trust_remote_code": False}
        self._device = options.device
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **rules)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(where, dtype=options.dtype, **rules)
        self._model = model.to(options.device).eval()
        self._tokenizer_lock = threading.Lock()  # a Rust tokenizer raises "Already borrowed" else
        # Only the last position's logits are used; all of a long prompt's can take gigabytes.
        takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_logits_only = {"logits_to_keep": 1} if takes_keep else {}
        self.context = _context(model, options.max_context)
        self.eos = _eos_tokens(model, self._tokenizer)

    def warm_up(self) -> None:
        """Generate two tokens, so that a model which cannot fails at load, not in a request."""
        for _ in islice(self.generate([0], Sampling(temperature=0), lambda: None), 2):
            pass

    def prompt(self, ask: Ask) -> tuple[str, list[int]]:
        """Return the prompt as text and as tokens. Raises `BadRequestError` if it is too long."""
        with self._tokenizer_lock:
            if ask.messages is not None:
                text = self._apply_chat_template(ask.messages)
                tokens = self._tokenizer.encode(text, add_special_tokens=False)
            else:
                text = ask.text or ""
                tokens = self._tokenizer.encode(text)
        if not tokens:
            raise BadRequestError(f"the prompt has no tokens: {text!r}")
        if len(tokens) >= self.context:
            raise BadRequestError(
                f"the prompt has {len(tokens)} tokens, but the context is {self.context} tokens "
                "and must also hold the answer"
            )
        return text, tokens

    def _apply_chat_template(self, messages: list[dict[str, object]]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise BadRequestError("this model has no chat template for messages; send text_input")
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as exc:  # templates raise for roles in an order they do not know
            raise BadRequestError(f"the chat template refuses these messages: {exc}") from exc

    def decode(self, tokens: Sequence[int]) -> str:
        with self._tokenizer_lock:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(self, prompt: list[int], sampling: Sampling, check: Callable[[], None]) -> Iterator[int]:
        """Yield tokens without end; `check` is called before each step and raises to stop."""
        import torch

        rng = torch.Generator(self._device)
        if sampling.seed is None:
            rng.seed()  # a new generator has a constant seed
        else:
            rng.manual_seed(sampling.seed)
        cache: Cache | None = None
        for start in range(0, len(prompt), PREFILL_CHUNK):
            check()
            logits, cache = self._forward(prompt[start : start + PREFILL_CHUNK], cache)
        while True:
            token = sample(logits, sampling, rng)
            yield token
            check()
            logits, cache = self._forward([token], cache)

    def _forward(self, tokens: list[int], cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        import torch

        # Entered here and not around a loop that yields: the mode belongs to the thread.
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([tokens], device=self._device),
                past_key_values=cache,
                use_cache=True,
                **self._last_logits_only,
            )
            return output.logits[0, -1], output.past_key_values


def _context(model: PreTrainedModel, wanted: int) -> int:
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        if not wanted:
            raise ValueError("the model's config has no max_position_embeddings; set max_context")
        return wanted
    if wanted > limit:
        raise ValueError(f"max_context is {wanted}, but the model's limit is {limit}")
    return wanted or limit


def _eos_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Chat models end a turn and a text with different tokens; either ends the answer."""
    generation = model.generation_config
    listed = generation.eos_token_id if generation is not None else None
    several = listed if isinstance(listed, list) else [listed]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    tokens: int  #: generated since the piece before
    finish_reason: str | None  #: set on the last piece


def pieces(model: LanguageModel, prompt: list[int], sampling: Sampling, check: Callable[[], None]) -> Iterator[Piece]:
    """Yield the answer; only the last piece may be empty."""
    text_of, stops = Detokenizer(model.decode, prompt), StopFilter(sampling.stop)
    limit = min(sampling.max_tokens, model.context - len(prompt))
    tokens = 0
    for count, token in enumerate(model.generate(prompt, sampling, check), start=1):
        tokens += 1
        ended = token in model.eos
        text, found = ("", False) if ended else stops.push(text_of.push(token))
        if not found and (ended or count == limit):
            more, found = stops.push(text_of.flush())
            text += more + stops.flush()
        if found or ended or count == limit:
            yield Piece(text, tokens, "stop" if found or ended else "length")
            return
        if text:
            yield Piece(text, tokens, None)
            tokens = 0


class Reply:
    """Sends the responses to one request."""

    def __init__(self, sender: pb_utils.InferenceResponseSender) -> None:
        self._sender = sender
        self._server = os.getppid()
        self._closed = False

    def check(self) -> None:
        if os.getppid() != self._server:
            raise ServerGoneError
        if self._sender.is_cancelled():
            raise RequestCancelledError

    def send(self, ask: Ask, piece: Piece, input_tokens: int) -> None:
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
    """Generate and send; blocks until the last response is out. Raises what went wrong."""
    reply.check()  # it may have waited long for a thread
    text, prompt = model.prompt(ask)
    parts = []
    for piece in pieces(model, prompt, ask.sampling, reply.check):
        if ask.stream:
            reply.send(ask, piece, len(prompt))
        else:
            parts.append(piece)
    if not ask.stream:
        whole = (text if ask.echo else "") + "".join(part.text for part in parts)
        tokens = sum(part.tokens for part in parts)
        reply.send(ask, Piece(whole, tokens, parts[-1].finish_reason), len(prompt))


@contextmanager
def failures_go_to(reply: Reply) -> Iterator[None]:
    """The edge where one request's failure must not fell the others: it becomes its response."""
    error = pb_utils.TritonError
    try:
        try:
            yield
        except BadRequestError as exc:
            reply.fail(str(exc), error.INVALID_ARG)
        except ServerGoneError:
            pass  # nobody is left to tell
        except RequestCancelledError:
            reply.fail("the request was cancelled", error.CANCELLED)
        except Exception as exc:  # noqa: BLE001
            pb_utils.Logger.log_error(traceback.format_exc())
            reply.fail(f"{type(exc).__name__}: {exc}", error.INTERNAL)
    except Exception:  # noqa: BLE001  # the response could not be sent
        pb_utils.Logger.log_error(traceback.format_exc())


def _threads_per_worker(workers: int) -> int:
    """Share the cores out: two workers of two threads each on two cores are slower than one.

    Measured with SmolLM2-135M, float32: 31 tokens/s together with one thread each, 18 with two.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _end_with_server(server: int) -> None:
    """Never be an orphan that holds the model's memory.

    The stub notices that tritonserver is dead, but then waits for every thread, and one that is
    inside a call to the server never returns (Triton 2.51).
    """
    while os.getppid() == server:
        time.sleep(SERVER_POLL_S)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


class TritonPythonModel:
    """What Triton loads. It calls these methods from one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        import torch

        threading.Thread(target=_end_with_server, args=(os.getppid(),), daemon=True).start()
        options = Options.from_config(json.loads(args["model_config"]))
        threads = _threads_per_worker(options.workers)
        torch.set_num_threads(threads)
        self._model = LanguageModel(options)
        self._model.warm_up()
        # torch keeps the thread count per thread, so each worker sets its own.
        self._pool = ThreadPoolExecutor(
            options.workers, "generate", initializer=torch.set_num_threads, initargs=(threads,)
        )
        pb_utils.Logger.log_info(
            f"{options.model_path} on {options.device}: context {self._model.context}, "
            f"{options.workers} workers of {threads} torch threads"
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
