"""Embeddings from a Hugging Face folder, inside any engine: one float32 vector per text.

A sentence-transformers folder says in modules.json how tokens become one vector. Without one, every model (encoders and
language models alike) gives the mean of its last hidden states, normalised, as llama.cpp's server does with
`--pooling mean`.

    model = EmbeddingModel(path, device="cpu", dtype="float32", max_context=256)
    vectors, tokens = model.embed(["a cat", "a dog"])  # [2, model.size], and how many tokens each text has
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bad_request import BadRequestError
from hugging_face import RULES, check, context_of

if TYPE_CHECKING:
    import numpy
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32  # texts that go through the model together; more only take more memory


@dataclass(frozen=True, slots=True)
class Recipe:
    """The way from hidden states to a vector, as the folder gives it."""

    pooling: str = "mean"
    normalize: bool = True
    weights: str = ""  #: folder of the transformer itself, below the model's
    max_length: int | None = None  #: longest text, in tokens; None is the model's own limit
    lower_case: bool = False
    prompt: str = ""  #: text in front of every text

    @classmethod
    def of(cls, folder: Path) -> Recipe:
        """Read a folder's recipe. Raises `ValueError` for unknown steps: leaving one out would give other vectors."""
        if not (folder / "modules.json").exists():
            return cls()
        modules = {
            str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in _json(folder, "modules.json")
        }
        if unknown := sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"}):
            raise ValueError(f"modules.json has {unknown[0]}; known: Transformer, Pooling, Normalize")
        if missing := sorted({"Transformer", "Pooling"} - modules.keys()):
            raise ValueError(f"modules.json has no {missing[0]}")
        weights = modules["Transformer"]
        text = folder / weights / "sentence_bert_config.json"
        limits = _json(text.parent, text.name) if text.exists() else {}
        pooling, prompt = _json(folder / modules["Pooling"], "config.json"), _prompt(folder)
        if prompt and not pooling.get("include_prompt", True):
            raise ValueError(f"the folder pools without the tokens of its prompt {prompt!r}, which is not known here")
        return cls(
            pooling=_pooling(pooling),
            normalize="Normalize" in modules,
            weights=weights,
            max_length=limits.get("max_seq_length"),
            lower_case=bool(limits.get("do_lower_case")),
            prompt=prompt,
        )


def _prompt(folder: Path) -> str:
    if not (folder / "config_sentence_transformers.json").exists():
        return ""
    config = _json(folder, "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    return str(config["prompts"][name]) if name else ""


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _pooling(config: Mapping[str, Any]) -> str:
    """Return the one pooling mode that is on; versions of sentence-transformers spell it in two ways."""
    mark = "pooling_mode_"
    on = [key.removeprefix(mark).removesuffix("_tokens").removesuffix("_token")
          for key, value in config.items() if key.startswith(mark) and value is True]  # fmt: skip
    named = config.get("pooling_mode")
    modes = on or ([named] if isinstance(named, str) else list(named or ()))
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ValueError(
            f"the folder asks for pooling {' + '.join(modes) or 'of no kind'}; known: {', '.join(_POOLINGS)}"
        )
    return str(modes[0])


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _max(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return states[:, 0]


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


#: states [texts, tokens, size] and mask [texts, tokens], padded on the right → [texts, size]
_POOLINGS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "lasttoken": _last,
}


class EmbeddingModel:
    """The model and its tokenizer. Several threads may use it at once."""

    def __init__(self, path: str, *, device: str = "cpu", dtype: str = "auto", max_context: int = 0) -> None:
        """Load the folder; `max_context` 0 is its own limit. Raises `ValueError` if it cannot be served so."""
        from transformers import AutoModel, AutoTokenizer

        check(path, device, dtype)
        self._recipe = recipe = Recipe.of(Path(path))
        folder = str(Path(path) / recipe.weights)
        self._device = device
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **RULES)
        self._tokenizer.padding_side = "right"
        self._tokenizer_lock = threading.Lock()  # a Rust tokenizer raises "Already borrowed" else
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token  # which one does not matter: it is masked
        model: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=dtype, **RULES)
        self._model = model.to(device).eval()
        #: numbers in each vector
        self.size: int = model.config.get_text_config().hidden_size
        #: most tokens that a text may have
        self.context = context_of(_longest(model, self._tokenizer), max_context or recipe.max_length or 0)

    def warm_up(self) -> None:
        """Embed a text, so that a model which cannot fails at load, not in a request."""
        self.embed(["a"])

    def embed(self, texts: Sequence[str]) -> tuple[numpy.ndarray[Any, Any], list[int]]:
        """Return float32 [texts, size], and the tokens of each text.

        Raises `BadRequestError` for a text that is empty or too long.
        """
        import numpy

        tokens = self._tokens(texts)
        rows = [self._forward(tokens[at : at + BATCH]) for at in range(0, len(tokens), BATCH)]
        return numpy.concatenate(rows), [len(one["input_ids"]) for one in tokens]

    def _tokens(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        if not texts:
            raise BadRequestError("there is no text to embed")
        whole = [self._recipe.prompt + text for text in texts]
        if self._recipe.lower_case:
            whole = [text.lower() for text in whole]
        with self._tokenizer_lock:
            encoded = [dict(self._tokenizer(text, verbose=False)) for text in whole]
        for number, one in enumerate(encoded):
            length = len(one["input_ids"])
            if not length:
                raise BadRequestError(f"text {number} has no tokens: {texts[number]!r}")
            if length > self.context:
                raise BadRequestError(f"text {number} has {length} tokens, but the limit is {self.context}")
        return encoded

    def _forward(self, tokens: Sequence[Mapping[str, list[int]]]) -> numpy.ndarray[Any, Any]:
        import torch

        with self._tokenizer_lock:
            batch = self._tokenizer.pad(list(tokens), padding=True, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state.float()
            vectors = _POOLINGS[self._recipe.pooling](states, batch["attention_mask"])
            if not bool(torch.isfinite(vectors).all()):
                raise RuntimeError("the model produced NaN or infinity; try dtype bfloat16 or float32")
            if self._recipe.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.cpu().numpy()  # type: ignore[no-any-return]


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the smaller of the model's positions and the tokenizer's limit, in tokens; None if neither is known.

    RoBERTa and its kin have two positions more than tokens; tokenizers without a limit say something like 10^30.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    known = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
    return min(known, default=None)
