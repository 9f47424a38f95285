"""The Python surface: `launch(...)` and the `ServingEngine` that it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from engines.base import (
    Engine,
    InferenceError,
    LaunchPlan,
    PlanError,
    ResourceError,
    Target,
)
from launcher import registry
from launcher.config import model_source
from launcher.config.compose import normalized, options, quoted
from launcher.config.schema import LaunchConfig
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.planning.assignment import Choices
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import Settled, settle
from launcher.prepare.steps import prepare, prepare_model, render_files
from launcher.progress import Progress
from launcher.serving.client import Client, Connected
from launcher.serving.hand_over import hand_over
from launcher.supervise import logs
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News

_NOT_RUNNING = "the deployment is not running; enter it or call start()"


def launch(*overrides: str, config_dir: str | None = None, progress: Progress | None = None) -> ServingEngine:
    """Return a `ServingEngine` for `overrides`; it starts when it is entered, or with `start()`.

    Raises `ConfigError` or `PlanError` at once where the overrides are wrong.
    """
    return ServingEngine(
        settle(normalized(overrides), this_machine(launches=True), config_dir), progress or Progress(quiet=True)
    )


class ServingEngine(Client):
    """A deployment that belongs to this process: it ends with the process, however that ends.

    The methods that ask the server are in `Client`.
    """

    def __init__(
        self,
        settled: Settled,
        progress: Progress,
        spawned: Spawned | None = None,
        *,
        machine: Machine | None = None,
        detached: bool = False,
    ) -> None:
        """Keep `spawned` and `machine` for the first start, if the caller has them already."""
        self._settled = settled
        self._detached = detached  #: the deployment outlives this process once it has been started
        self.on_news: Callable[[News], None] = lambda _: None  #: called from another thread at each change of state
        self.progress = progress
        self.stop_asked = False
        self._spawned = spawned
        self._machine = machine
        self._engine: Engine | None = None
        self._plan: LaunchPlan | None = None
        self._target: Target | None = None
        self._supervised: Supervised | None = None
        self._stopped: News | None = None

    # ------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> ServingEngine:
        """Plan, prepare, start, and wait until a real request is answered. A second call does nothing.

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
                self._supervised.wait_ready(self._show_log)
        except BaseException:
            self.close()
            raise
        return self

    start_server = start

    def _hand_over(self, spawned: Spawned) -> Supervised:
        """Resolve, plan, claim and prepare; the supervisor has its orders when this returns."""
        machine, self._machine = self._machine or this_machine(launches=True), None  # each is looked at for one start
        options = dataclasses.asdict(self.config.engine)

        def choose() -> tuple[LaunchPlan, tuple[int, ...]]:
            self._engine, spec = resolve(self.config, machine)
            self._plan = self._engine.plan(spec)
            ours = self.config.supervise.metrics_port
            return self._plan, (*spec.ports, *([ours] if ours else []))

        def make(plan: LaunchPlan) -> None:
            for note in plan.notes:
                self.progress.note(note)
            prepare(plan, self.progress)
            self._target = Target(plan.endpoints, plan.model.id, options, self.config.api_key, key=plan.key)

        return hand_over(
            spawned,
            machine.ledger,
            choose,
            make,
            self.config.supervise,
            api_key=self.config.api_key,
            options=options,
            detached=self._detached,
            on_news=self._tell,
        )

    def stop(self) -> News | None:
        """Drain, stop and sweep; return the last news, None if nothing was started. A second call does nothing."""
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
        settled = settle([*kept, *model_overrides(model)], this_machine(launches=True), self._settled.config_dir)
        if self._supervised is not None:
            self.stop()
        self._settled = settled
        return self.start() if was_running else self

    def ask_stop(self) -> bool:
        """Ask for a drain and a stop without waiting; a second call changes nothing. False if nothing runs."""
        if self._supervised is None:
            return False
        self.stop_asked = True
        self._supervised.stop()
        return True

    def kill(self) -> None:
        """Ask for a stop without a drain, or without the rest of one; does not wait for it."""
        if self._supervised is not None:
            self._supervised.kill()

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
        """The config of the launch; nothing in it says `auto`."""
        return self._settled.config

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason for each choice that `auto` left to us."""
        return self._settled.reasons

    def is_available(self) -> bool:
        """Return whether this machine has the device of the config."""
        try:
            Choices(self.config, this_machine(launches=True))
        except ResourceError:
            return False
        return True

    def supported_devices(self) -> tuple[str, ...]:
        """Return the kinds of devices that the engine can use."""
        return registry.engine_class(self.engine_type).capabilities.devices

    @property
    def plan(self) -> LaunchPlan:
        """The plan that was started. Raises `InferenceError` before `start`."""
        if self._plan is None:
            raise InferenceError(_NOT_RUNNING)
        return self._plan

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.plan.name

    @property
    def engine_type(self) -> str:
        """The engine's name: triton, llamacpp, …."""
        return self.config.engine.name

    @property
    def news(self) -> News:
        """The last news of the supervisor."""
        return self._running.news

    @property
    def is_running(self) -> bool:
        """True from the start of the deployment to its end; `health_check` asks the server itself."""
        return self._supervised is not None and not self._supervised.news.phase.final

    # ----------------------------------------------------------------------------------------- making, not starting

    def setup_model_repository(self, folder: str | Path) -> Path:
        """Write the model repository of engine=triton into `folder`, for a Triton of one's own; return its path.

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
        engine, spec = resolve(self.config, this_machine())
        return engine.plan(spec)

    # ------------------------------------------------------------------------------------------------- asking it

    def health_check(self, timeout_s: float = 5.0) -> bool:
        """Return whether the server says now, over HTTP, that it is ready."""
        return self._supervised is not None and super().health_check(timeout_s)

    def _connected(self) -> Connected:
        if not self.is_running or self._engine is None or self._target is None:
            raise InferenceError(_NOT_RUNNING)
        return Connected(self._engine, self.plan, self._target)

    @property
    def _running(self) -> Supervised:
        if self._supervised is None:
            raise InferenceError(_NOT_RUNNING)
        return self._supervised

    def _show_log(self, news: News) -> None:
        """Show the newest line of the engine's log while it starts."""
        if self.progress.live and (lines := logs.tail(Path(news.log))):
            self.progress.detail(lines[-1])

    def _tell(self, news: News) -> None:
        """Tell the user, unasked, of crashes, restarts, and a server that stopped answering."""
        self.on_news(news)
        if news.phase in (Phase.DEGRADED, Phase.BACKOFF) or (news.phase is Phase.STARTING and news.crashes):
            crash = "" if news.phase is Phase.DEGRADED else f", crash {news.crashes}"
            self.progress.note(f"{self.name}: {news.phase.value}{crash}: {news.reason}")


def model_overrides(model: str) -> list[str]:
    """Return the overrides that choose `model`: a name of conf/model, `org/name` of the hub, or a `model.source`."""
    if model in options("model"):
        return [f"model={model}"]
    source = model if ":" in model else f"hf:{model}"
    name = model_source.parse(source).name.rpartition("/")[2]
    return normalized([f"model.source={quoted(source)}", f"model.id={quoted(name)}"])
