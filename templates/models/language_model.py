"""A Hugging Face causal language model: prompts in, text out, piece by piece, inside any engine.

Requests may run side by side, one thread each: every one has its own random generator, and a seed gives the same text
whatever else is running.

    model = LanguageModel(path, device="cpu", dtype="bfloat16", max_context=2048)
    model.warm_up()
    prompt = model.prompt(text=None, messages=[{"role": "user", "content": "Hi"}])
    for piece in pieces(model, prompt.tokens, Sampling(max_tokens=20), check):
        ...
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from bad_request import BadRequestError
from decoding import Detokenizer, Sampling, StopFilter, sample
from hugging_face import RULES, check, context_of

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

PREFILL_CHUNK = 512  # tokens; a cancelled request is noticed between two chunks


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, as text and as tokens."""

    text: str  #: the text after the chat template
    tokens: list[int]


class LanguageModel:
    """The model and its tokenizer. Several threads may use it at once."""

    def __init__(self, path: str, *, device: str = "cpu", dtype: str = "auto", max_context: int = 0) -> None:
        """Load the folder; `max_context` 0 is the model's own limit. Raises `ValueError` if it cannot be served so."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check(path, device, dtype)
        self._device = device
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **RULES)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **RULES)
        self._model = model.to(device).eval()
        self._tokenizer_lock = threading.Lock()  # a Rust tokenizer raises "Already borrowed" else
        # Only the last position's logits are used; all of a long prompt's can take gigabytes.
        takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_logits_only = {"logits_to_keep": 1} if takes_keep else {}
        #: most tokens of prompt and answer together
        self.context = context_of(getattr(model.config.get_text_config(), "max_position_embeddings", None), max_context)
        #: tokens that end an answer
        self.eos = _eos_tokens(model, self._tokenizer)

    def warm_up(self) -> None:
        """Generate two tokens, so that a model which cannot fails at load, not in a request."""
        for _ in islice(self.generate([0], Sampling(temperature=0), lambda: None), 2):
            pass

    def prompt(self, text: str | None, messages: list[dict[str, object]] | None) -> Prompt:
        """Read a text to continue, or else messages to answer. Raises `BadRequestError` if it is too long."""
        with self._tokenizer_lock:
            if messages is not None:
                whole = self._apply_chat_template(messages)
                tokens = self._tokenizer.encode(whole, add_special_tokens=False)
            else:
                whole = text or ""
                tokens = self._tokenizer.encode(whole)
        if not tokens:
            raise BadRequestError(f"the prompt has no tokens: {whole!r}")
        if len(tokens) >= self.context:
            raise BadRequestError(
                f"the prompt has {len(tokens)} tokens, but the context is {self.context} tokens "
                "and must also hold the answer"
            )
        return Prompt(whole, tokens)

    def _apply_chat_template(self, messages: list[dict[str, object]]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise BadRequestError("this model has no chat template for messages; send text_input")
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as exc:  # templates raise for roles in an order they do not know
            raise BadRequestError(f"the chat template refuses these messages: {exc}") from exc

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens."""
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


def _eos_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: chat models end a turn and a text with different ones."""
    generation = model.generation_config
    listed = generation.eos_token_id if generation is not None else None
    several = listed if isinstance(listed, list) else [listed]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer."""

    text: str
    tokens: int  #: tokens generated since the piece before
    finish_reason: str | None  #: stop or length; None on every piece but the last


def pieces(model: LanguageModel, prompt: list[int], sampling: Sampling, check: Callable[[], None]) -> Iterator[Piece]:
    """Yield the answer; only the last piece may be empty.

    `check` is called before each step of the model and raises what shall end the answer, such as a client that is gone.
    """
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
