"""The requests to a running server, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.endpoint import Endpoints, KeyFile

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings for decoding text, by their OpenAI and vLLM names. None leaves one to the server."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the settings that are set, under the names that OpenAI's and Triton's servers share."""
        given: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        optional = {"top_p": self.top_p, "top_k": self.top_k, "seed": self.seed, "stop": list(self.stop) or None}
        return given | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Text to continue (`prompt`) or a conversation to answer (`messages`); exactly one of them."""

    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    usage: bool = False  #: say why the text ended and how many tokens it took


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to embed; the answer is one `Vector` for each."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """Arrays by the names of the model's inputs; the launcher has compared them with its signature."""

    inputs: Mapping[str, numpy.ndarray[Any, Any]]


Request = GenerateRequest | EmbedRequest | TensorRequest


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text; counts are in tokens, and the last chunk has the totals where the server tells."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of one text, in the order of the request."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Arrays by the names of the model's outputs."""

    values: Mapping[str, numpy.ndarray[Any, Any]]


Answer = Chunk | Vector | Tensors


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, as a client sees it."""

    endpoints: Endpoints
    model_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = None
    timeout_s: float = 600.0
    key: KeyFile | None = None  #: where a server that makes its own keys writes them

    def bearer(self) -> str | None:
        """Return the token to send; None for none. Raises `InferenceError` if the server has not written it."""
        return self.key.read() if self.key else self.api_key
