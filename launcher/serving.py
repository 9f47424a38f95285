"""The Python surface: `launch(...)` and the `ServingEngine` that it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, overload

from engines.base import (
    Answer,
    Chunk,
    EmbedRequest,
    Engine,
    GenerateRequest,
    InferenceError,
    LaunchPlan,
    PlanError,
    Request,
    Sampling,
    Target,
    TensorRequest,
    Tensors,
    Vector,
)
from launcher import models, plans, probes, registry, signatures
from launcher.compose import normalized, options, quoted
from launcher.control import News, Supervised
from launcher.ledger import Ledger
from launcher.lifecycle import Phase
from launcher.paths import state_root
from launcher.prepare import prepare, prepare_model, render_files
from launcher.progress import Progress
from launcher.resolve import Request as Settled
from launcher.resolve import resolve, settle
from launcher.schema import LaunchConfig
from launcher.spawn import Spawned

if TYPE_CHECKING:
    import numpy

Message = Mapping[str, str]
Arrays = Mapping[str, "numpy.ndarray[Any, Any]"]

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling))
_NOT_RUNNING = "the deployment is not running; enter it or call start()"


def launch(*overrides: str, config_dir: str | None = None, progress: Progress | None = None) -> ServingEngine:
    """A `ServingEngine` for what `overrides` compose to; it starts when it is entered, or with `start()`.

    Raises `ConfigError` or `PlanError` at once where the overrides are wrong.
    """
    return ServingEngine(settle(normalized(overrides), config_dir), progress or Progress(quiet=True))


class ServingEngine:
    """One deployment that belongs to this process: it ends with it, however this process ends.

    `infer`, `stream` and `embed` may be called from several threads. Every method that asks the server raises
    `InferenceError` with the server's own words.
    """

    def __init__(self, settled: Settled, progress: Progress, spawned: Spawned | None = None) -> None:
        self._settled = settled
        self.on_news: Callable[[News], None] = lambda _: None  #: called from another thread at each change of state
        self.progress = progress
        self.stop_asked = False
        self._spawned = spawned
        self._engine: Engine | None = None
        self._plan: LaunchPlan | None = None
        self._target: Target | None = None
        self._supervised: Supervised | None = None
        self._stopped: News | None = None

    # ------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> ServingEngine:
        """Plan, prepare, start, and wait until a real request was answered. A second call does nothing.

        Raises `RequestError` where this machine cannot do it, `PrepareError`, `ExitedBeforeReady` or `ReadyTimeout`.
        """
        if self._supervised is not None:
            return self
        spawned, self._spawned = self._spawned or Spawned(), None  # each serves one start
        try:
            self._supervised = self._hand_over(spawned)
        except BaseException:
            spawned.close()
            raise
        try:
            with self.progress.stage("start", f"{self.name} at {self.plan.endpoints.http.url}"):
                self._supervised.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    start_server = start

    def _hand_over(self, spawned: Spawned) -> Supervised:
        """Resolve, plan, claim and prepare; the supervisor has its orders when this returns."""
        ledger = Ledger(state_root())
        with ledger.exclusive():
            self._engine, spec = resolve(self.config, ledger, to_launch=True)
            plan = self._plan = self._engine.plan(spec)
            claim = ledger.claim(plan.name, spec.ports, plans.public(plan))
        try:
            prepare(plan, self.progress)
            options = dataclasses.asdict(self.config.engine)
            self._target = Target(plan.endpoints, plan.model.id, options, self.config.api_key, key=plan.key)
            return Supervised(spawned, plan, claim, self.config.supervise, self.config.api_key, self._tell)
        except BaseException:
            claim.release()
            raise

    def stop(self) -> News | None:
        """Drain, stop and sweep; returns what was left, if anything. A second call does nothing."""
        if self._supervised is None:
            return self._stopped
        if self._engine is not None:
            self._engine.close()  # servers wait for connections that are kept open, idle ones too
        try:
            with self.progress.stage("stop", f"{self.name}"):
                self._supervised.stop()
                self._stopped = self._supervised.wait_final(self.config.supervise.stop_grace_s + 10)
        finally:
            self.close()
        return self._stopped

    stop_server = stop

    def load_model(self, model: str) -> ServingEngine:
        """Serve `model` from now on: a name of `conf/model`, `org/name` of the Hugging Face hub, or a `model.source`.

        A server that is running is stopped and started with it. Raises as `launch` and `start` do.
        """
        was_running = self.is_running
        kept = [item for item in self._settled.overrides if not item.lstrip("+").startswith(("model=", "model."))]
        settled = settle([*kept, *model_overrides(model)], self._settled.config_dir)
        if self._supervised is not None:
            self.stop()
        self._settled = settled
        return self.start() if was_running else self

    def ask_stop(self) -> bool:
        """Ask for a drain and a stop without waiting; a second call kills. False where there is nothing to stop."""
        if self._supervised is None:
            return False
        self.stop_asked = True
        self._supervised.stop()
        return True

    def close(self) -> None:
        """Let go at once: an engine that still runs is killed. Safe to call twice."""
        if self._supervised is not None:
            self._supervised.close()
            self._supervised = None
        if self._engine is not None:
            self._engine.close()

    def wait(self) -> News:
        """Block until the deployment has ended by itself. Raises `DeploymentError` where it failed."""
        news = self._running.wait_final()
        if news.phase is Phase.FAILED:
            raise self._running.failure()
        return news

    def __enter__(self) -> ServingEngine:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------------ what it is

    @property
    def config(self) -> LaunchConfig:
        """What it is launched from; nothing in it says `auto`."""
        return self._settled.config

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each `auto` became what it is."""
        return self._settled.reasons

    def is_available(self) -> bool:
        """Whether this machine has the device that it is to run on."""
        return bool(registry.device(self.config.device.kind).detect())

    def supported_devices(self) -> tuple[str, ...]:
        """The kinds of devices that the engine can use."""
        return registry.engine_class(self.engine_type).capabilities.devices

    @property
    def plan(self) -> LaunchPlan:
        """What was started. Raises `InferenceError` before `start`."""
        if self._plan is None:
            raise InferenceError(_NOT_RUNNING)
        return self._plan

    @property
    def name(self) -> str:
        """Of the deployment."""
        return self.plan.name

    @property
    def engine_type(self) -> str:
        """Of the engine: triton, llamacpp, …"""
        return self.config.engine.name

    @property
    def news(self) -> News:
        """What the supervisor said last."""
        return self._running.news

    @property
    def is_running(self) -> bool:
        """The deployment has been started and has not ended; `health_check` asks the server itself."""
        return self._supervised is not None and not self._supervised.news.phase.final

    # ----------------------------------------------------------------------------------------- making, not starting

    def setup_model_repository(self, folder: str | Path) -> Path:
        """Write the model repository of engine=triton into `folder`, for a Triton of one's own; returns its path.

        The model is fetched and converted, and stays where it is: the repository names it.
        """
        plan = self._planned()
        if plan.model_repository is None:
            raise PlanError(f"engine={self.engine_type} has no model repository; engine=triton has")
        prepare_model(plan, self.progress)
        inside = f"{plan.model_repository}/"
        target = Path(folder).expanduser().absolute()
        render_files(
            {name.removeprefix(inside): text for name, text in plan.files.items() if name.startswith(inside)},
            {},
            target,
        )
        return target

    def create_model_archive(self) -> Path:
        """Make the model archive (MAR) of engine=torchserve and return its path; an equal one is made once."""
        plan = self._planned()
        if plan.model_archive is None:
            raise PlanError(f"engine={self.engine_type} has no model archive; engine=torchserve has")
        prepare_model(plan, self.progress)
        return Path(plan.model_archive)

    def _planned(self) -> LaunchPlan:
        engine, spec = resolve(self.config, Ledger(state_root()), to_launch=False)
        return engine.plan(spec)

    # ------------------------------------------------------------------------------------------------- asking it

    def health_check(self, timeout_s: float = 5.0) -> bool:
        """Whether the server says now, over HTTP, that it is ready."""
        if self._supervised is None:
            return False
        plan = self.plan
        door = probes.Door(plan.endpoints.http, self.config.api_key, plan.key)
        return probes.check(door, plan.probes.startup, timeout_s) is None

    def get_metrics(self, timeout_s: float = 5.0) -> dict[str, float]:
        """The server's own numbers, by Prometheus' names with their labels: `{'vllm:num_requests_running{…}': 0.0}`.

        Raises `InferenceError` where it has none or does not answer.
        """
        from launcher import metrics

        if not self.is_running:
            raise InferenceError(_NOT_RUNNING)
        if (url := self.plan.endpoints.metrics) is None:
            raise InferenceError(f"engine={self.engine_type} publishes no metrics as it is configured")
        return metrics.scrape(url, self._ready_target.bearer(), timeout_s)

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
        """Continue a text, answer a conversation (`[{"role": …, "content": …}]`), continue several texts, or run a
        tensor model: arrays by the names of its inputs, to arrays by the names of its outputs.

        `sampling` has the fields of `engines.base.Sampling`. Greedy unless a temperature is given. Several texts are
        asked one after the other.
        """
        if isinstance(inputs, Mapping):
            return self._run_tensors(inputs, sampling)
        if not isinstance(inputs, str) and inputs and isinstance(inputs[0], str):
            return [self.infer(text, **sampling) for text in cast(Sequence[str], inputs)]
        request = _generate_request(cast("str | Sequence[Message]", inputs), sampling, stream=False)
        return "".join(chunk.text for chunk in self.chunks(request))

    def stream(self, inputs: str | Sequence[Message], **sampling: Any) -> Iterator[str]:
        """As `infer`, piece by piece as the server makes them; closing the iterator cancels the request."""
        for chunk in self.chunks(_generate_request(inputs, sampling, stream=True)):
            if chunk.text:
                yield chunk.text

    def embed(self, texts: str | Sequence[str]) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        """The embeddings of `texts`, float32 [len(texts), dimension]."""
        import numpy

        self._demand_task("embed", "texts to embed")
        request = EmbedRequest((texts,) if isinstance(texts, str) else tuple(texts))
        vectors = cast("Iterator[Vector]", self._ask(request))
        return numpy.array([vector.values for vector in vectors], dtype=numpy.float32)

    def chunks(self, request: GenerateRequest) -> Iterator[Chunk]:
        """The typed pieces of an answer, with finish reason and token counts; what `infer` and `stream` stand on."""
        self._demand_task("generate", "prompts")
        return cast("Iterator[Chunk]", self._ask(request))

    def _run_tensors(self, inputs: Arrays, sampling: Mapping[str, Any]) -> dict[str, numpy.ndarray[Any, Any]]:
        if sampling:
            raise InferenceError(f"sampling option {next(iter(sampling))!r} means nothing to a tensor model")
        self._demand_task("tensor", "arrays by name")
        request = TensorRequest(signatures.checked(inputs, self.plan.model.inputs))
        (answer,) = cast("Iterator[Tensors]", self._ask(request))
        return dict(answer.values)

    def _demand_task(self, task: str, what: str) -> None:
        """Refuse what the model is not for, before a server answers it with nonsense."""
        if (has := self.plan.model.task) != task:
            raise InferenceError(f"{self.name} serves model.task={has}, which does not take {what}")

    @property
    def _ready_target(self) -> Target:
        if self._target is None:
            raise InferenceError(_NOT_RUNNING)
        return self._target

    @property
    def _running(self) -> Supervised:
        if self._supervised is None:
            raise InferenceError(_NOT_RUNNING)
        return self._supervised

    def _ask(self, request: Request) -> Iterator[Answer]:
        if self._supervised is None or self._engine is None:
            raise InferenceError(_NOT_RUNNING)
        if isinstance(request, GenerateRequest) and request.messages is not None and not self.plan.chat:
            raise InferenceError(f"{self.name} takes a text to continue, no chat messages")
        return self._engine.infer(self._ready_target, request)

    def _tell(self, news: News) -> None:
        """Say what a user should know though nobody asked: crashes, restarts, a server that stopped answering."""
        self.on_news(news)
        if news.phase in (Phase.DEGRADED, Phase.BACKOFF) or (news.phase is Phase.STARTING and news.crashes):
            crash = "" if news.phase is Phase.DEGRADED else f", crash {news.crashes}"
            self.progress.note(f"{self.name}: {news.phase.value}{crash}: {news.reason}")


def model_overrides(model: str) -> list[str]:
    """The overrides that choose `model`: a name of conf/model, `org/name` of the hub, or a `model.source`."""
    if model in options("model"):
        return [f"model={model}"]
    source = model if ":" in model else f"hf:{model}"
    name = models.parse(source).name.rpartition("/")[2]
    return normalized([f"model.source={quoted(source)}", f"model.id={quoted(name)}"])


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
