"""Ask a deployment: one client for every engine."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, overload

from engines.base import (
    Answer,
    Chunk,
    EmbedRequest,
    Engine,
    GenerateRequest,
    InferenceError,
    LaunchPlan,
    Request,
    Sampling,
    Target,
    TensorRequest,
    Tensors,
    Vector,
)
from launcher.serving.tensors import checked
from launcher.supervise import probes

if TYPE_CHECKING:
    import numpy

Message = Mapping[str, str]
Arrays = Mapping[str, "numpy.ndarray[Any, Any]"]

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling))


@dataclass(frozen=True, slots=True)
class Connected:
    """A deployment that can be asked: its engine's translator, its plan, and its address."""

    engine: Engine
    plan: LaunchPlan
    target: Target


class Client(ABC):
    """A client of one deployment; `infer`, `stream` and `embed` may be called from several threads.

    Every method that asks the server raises `InferenceError` with the server's own words.
    """

    @abstractmethod
    def _connected(self) -> Connected:
        """Return the deployment to ask. Raises `InferenceError` if none runs."""

    def health_check(self, timeout_s: float = 5.0) -> bool:
        """Return whether the server says now, over HTTP, that it is ready."""
        connected = self._connected()
        plan = connected.plan
        door = probes.Door(plan.endpoints.http, connected.target.api_key, plan.key)
        return probes.check(door, plan.probes.startup, timeout_s) is None

    def get_metrics(self, timeout_s: float = 5.0) -> dict[str, float]:
        """Return the server's own numbers, by Prometheus' names and labels: `{'vllm:num_requests_running{…}': 0.0}`.

        Raises `InferenceError` if it has none or does not answer.
        """
        from launcher.serving import metrics

        connected = self._connected()
        if (url := connected.plan.endpoints.metrics) is None:
            raise InferenceError(f"engine={connected.plan.engine} publishes no metrics as it is configured")
        return metrics.scrape(url, connected.target.bearer(), timeout_s)

    @overload
    def infer(self, inputs: str, **sampling: Any) -> str: ...
    @overload
    def infer(self, inputs: Sequence[Message], **sampling: Any) -> str: ...
    @overload
    def infer(self, inputs: Sequence[str], **sampling: Any) -> list[str]: ...
    @overload
    def infer(self, inputs: Arrays) -> dict[str, numpy.ndarray[Any, Any]]: ...

    def infer(
        self, inputs: str | Sequence[str] | Sequence[Message] | Arrays, **sampling: Any
    ) -> str | list[str] | dict[str, numpy.ndarray[Any, Any]]:
        """Ask for the whole answer to `inputs`, and return it.

        A text is continued, several texts one after the other. `[{"role": …, "content": …}, …]` is a conversation, and
        answered. A tensor model takes arrays by the names of its inputs, and gives arrays by the names of its outputs.

        `sampling` has the fields of `engines.base.Sampling`. Greedy unless a temperature is given.
        """
        if isinstance(inputs, Mapping):
            return self._run_tensors(inputs, sampling)
        if not isinstance(inputs, str) and inputs and isinstance(inputs[0], str):
            return [self.infer(text, **sampling) for text in cast(Sequence[str], inputs)]
        request = _generate_request(cast("str | Sequence[Message]", inputs), sampling, stream=False)
        return "".join(chunk.text for chunk in self.chunks(request))

    def stream(self, inputs: str | Sequence[Message], **sampling: Any) -> Iterator[str]:
        """Yield the answer that `infer` returns in pieces, as the server makes them; closing cancels the request."""
        for chunk in self.chunks(_generate_request(inputs, sampling, stream=True)):
            if chunk.text:
                yield chunk.text

    def embed(self, texts: str | Sequence[str]) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        """Return the embeddings of `texts`, float32 [len(texts), dimension]."""
        import numpy

        self._demand_task("embed", "texts to embed")
        request = EmbedRequest((texts,) if isinstance(texts, str) else tuple(texts))
        vectors = cast("Iterator[Vector]", self._ask(request))
        return numpy.array([vector.values for vector in vectors], dtype=numpy.float32)

    def chunks(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Yield an answer's typed pieces, with finish reason and token counts; `infer` and `stream` use it."""
        self._demand_task("generate", "prompts")
        return cast("Iterator[Chunk]", self._ask(request))

    def _run_tensors(self, inputs: Arrays, sampling: Mapping[str, Any]) -> dict[str, numpy.ndarray[Any, Any]]:
        if sampling:
            raise InferenceError(f"sampling option {next(iter(sampling))!r} means nothing to a tensor model")
        self._demand_task("tensor", "arrays by name")
        request = TensorRequest(checked(inputs, self._connected().plan.model.inputs))
        (answer,) = cast("Iterator[Tensors]", self._ask(request))
        return dict(answer.values)

    def _demand_task(self, task: str, what: str) -> None:
        """Refuse a request that the model is not for, before a server answers it with nonsense."""
        plan = self._connected().plan
        if (has := plan.model.task) != task:
            raise InferenceError(f"{plan.name} serves model.task={has}, which does not take {what}")

    def _ask(self, request: Request) -> Iterator[Answer]:
        connected = self._connected()
        if isinstance(request, GenerateRequest) and request.messages is not None and not connected.plan.chat:
            raise InferenceError(f"{connected.plan.name} takes a text to continue, no chat messages")
        return connected.engine.infer(connected.target, request)


def _generate_request(inputs: str | Sequence[Message], sampling: Mapping[str, Any], stream: bool) -> GenerateRequest:
    if unknown := sorted(sampling.keys() - _SAMPLING):
        raise InferenceError(f"unknown sampling option {unknown[0]!r}; options: {', '.join(sorted(_SAMPLING))}")
    stop = sampling.get("stop") or ()
    decoding = Sampling(**{**sampling, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
    if decoding.max_tokens < 1 or decoding.temperature < 0:
        raise InferenceError(
            f"max_tokens={decoding.max_tokens} and temperature={decoding.temperature}: at least 1 token, and no "
            "temperature below 0"
        )
    if inputs == "":  # some servers continue it with anything, some fail
        raise InferenceError("the prompt is empty; give a text to continue")
    if isinstance(inputs, str):
        return GenerateRequest(prompt=inputs, sampling=decoding, stream=stream)
    if not inputs or not all(isinstance(item, Mapping) and {"role", "content"} <= set(item) for item in inputs):
        raise InferenceError(f"cannot ask {inputs!r}: give a text, or messages [{{'role': 'user', 'content': '…'}}, …]")
    return GenerateRequest(messages=tuple(dict(item) for item in inputs), sampling=decoding, stream=stream)
