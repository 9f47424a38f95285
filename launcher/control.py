"""The other side of a supervisor: start one, follow what it says, ask it to stop or for something else."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engines.base import DeploymentError, ExitedBeforeReady, LaunchPlan, ReadyTimeout, StoppedBeforeReady
from launcher import bounded_json, dataclass_json, plan_json, registry
from launcher.config import declared_device
from launcher.config.schema import SuperviseConf
from launcher.ledger import Claim
from launcher.lifecycle import Phase, Policy
from launcher.orders import Orders, plugin_at
from launcher.peers import connect
from launcher.runtimes.base import Runtime
from launcher.spawn import Spawned

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_S = 4.0  #: for a supervisor to show that it is there
_BUSY_S = 30.0  #: that one which has may be silent: it sweeps, or waits for a device or a daemon
_PING_S = 2.0


@dataclass(frozen=True, slots=True)
class News:
    """What the supervisor said last."""

    phase: Phase = Phase.PENDING
    reason: str = ""
    timed_out: bool = False
    killed: bool = False  #: its last crash was a signal that somebody else sent, and nothing of its own
    returns: bool = False  #: it is being stopped to be started again
    crashes: int = 0
    served: bool = False  #: it has been READY at least once
    starts: int = 0
    pid: int | None = None  #: of the engine's program
    handle: Mapping[str, Any] | None = None  #: the same, as `Handle` has it
    supervisor: int | None = None  #: its pid
    detached: bool = False
    since: float = 0.0  #: epoch seconds, of the supervisor's start
    log: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @classmethod
    def read(cls, line: bytes) -> News:
        """Raises `ValueError` where it is no JSON object."""
        return cls.of(bounded_json.parse(line))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> News:
        """Take what is understood: the supervisor may be of another version. The rest is told in `reason`."""
        given, strange = dataclass_json.understood(cls, {**data, "phase": data.get("state")})
        if strange:
            reasons = [given.get("reason", ""), *(f"its supervisor's word is not understood: {why}" for why in strange)]
            given["reason"] = "; ".join(filter(None, reasons))
        return cls(**{"phase": Phase.UNKNOWN, **given})


def orders_for(
    plan: LaunchPlan,
    folder: Path,
    supervise: SuperviseConf,
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    detached: bool = False,
) -> Orders:
    return Orders(
        plan=plan,
        runtime=registry.import_path("runtime", plan.runtime),
        device=declared_device.import_path(plan.device.kind),
        folder=str(folder),
        policy=Policy(supervise.max_crashes, supervise.backoff_s, supervise.backoff_max_s),
        stop_grace_s=supervise.stop_grace_s,
        stable_s=supervise.stable_s,
        log_bytes=supervise.log_mib << 20,
        api_key=api_key,
        options=options or {},
        detached=detached,
        metrics_port=supervise.metrics_port,
    )


class Supervised:
    """A supervisor process that is ours: it and its engine end with us, however we end, unless it is detached."""

    def __init__(
        self, spawned: Spawned, orders: Orders, claim: Claim, on_news: Callable[[News], None] = lambda _: None
    ) -> None:
        self.plan = orders.plan
        self.news = News()
        self._orders = orders
        self._claim = claim
        self._on_news = on_news
        self._changed = threading.Condition()
        self._was_ready = False
        self._closed = False
        self._since = time.time()
        self._spawned = spawned
        with (claim.folder / "supervisor.log").open("ab") as output:
            spawned.give(orders.dumps(), claim.lock, output.fileno())
        threading.Thread(target=self._listen, name="supervisor news", daemon=True).start()

    def wait_ready(self, meanwhile: Callable[[News], None] = lambda _: None) -> News:
        """Block until the engine serves, and call `meanwhile` now and then.

        Raises the `DeploymentError` that fits, with cause and last lines.
        """
        news = self._wait(lambda news: self._was_ready or news.phase.final, None, meanwhile)
        if news.phase.final:
            raise self.failure()
        return news

    def wait_settled(self, timeout_s: float) -> News:
        """Block until it serves or has ended, at most `timeout_s`."""
        return self._wait(lambda news: news.phase is Phase.READY or news.phase.final, timeout_s)

    def wait_final(self, timeout_s: float | None = None) -> News:
        """Block until the deployment has ended, at most `timeout_s`."""
        return self._wait(lambda news: news.phase.final, timeout_s)

    def stop(self) -> None:
        """Ask for a drain and a stop; a second call kills. Does not wait; asking one that has ended does nothing."""
        with contextlib.suppress(OSError):
            self._spawned.control.sendall(b'{"op": "stop"}\n')

    def close(self) -> None:
        """Let go: a supervisor that still runs kills its engine now, unless it is detached. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._orders.detached and self._was_ready and not self.news.phase.final:
            self.leave()
            return
        if self._orders.detached:  # we leave before it is ready: it does not end by itself
            self.stop()
            self.stop()
        self._spawned.close()
        self._claim.release(self._sweep_if_orphaned() or self.news.leftovers)

    def leave(self) -> None:
        """Let go of a detached deployment, which goes on."""
        self._closed = True
        self._spawned.leave()
        self._claim.lock.close()

    def failure(self) -> DeploymentError:
        """The error that the last news amount to."""
        news = self.news
        tail = "".join(f"\n  | {line}" for line in news.tail)
        where = f"\n  log: {news.log}" if news.log else ""
        text = f"{self.plan.name}: {news.reason or news.phase.value}{tail}{where}"
        if news.phase is Phase.STOPPED and not self._was_ready:
            return StoppedBeforeReady(f"{self.plan.name}: stopped before it was ready")
        if news.timed_out:
            return ReadyTimeout(text)
        if not self._was_ready:
            return ExitedBeforeReady(f"{text}\n  it ended {news.crashes or 1} × before it served")
        return DeploymentError(text)

    def _wait(
        self,
        done: Callable[[News], bool],
        timeout_s: float | None,
        meanwhile: Callable[[News], None] = lambda _: None,
    ) -> News:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not done(self.news):
                left = 0.5 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))  # short, so that a signal is handled in between
                meanwhile(self.news)
        return self.news

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._spawned.control.makefile("rb") as lines:
            for line in lines:
                self._take(News.read(line))
        if not self.news.phase.final and not self._closed:
            self._take(News(Phase.FAILED, "its supervisor was killed", log=str(self._claim.folder / "supervisor.log")))

    def _take(self, news: News) -> None:
        with self._changed:
            self.news = news
            self._was_ready = self._was_ready or news.phase is Phase.READY
            self._changed.notify_all()
        try:
            self._on_news(news)
        except Exception:  # what a listener does wrong must not look like a failure of the engine
            log.exception("%s: a listener failed", self.plan.name)

    def _sweep_if_orphaned(self) -> Sequence[str]:
        """A supervisor that was killed took the engine's leader along; its workers are ours to end, and a container.

        Returns what is still there.
        """
        if self._spawned.process.returncode == 0:
            return ()
        runtime: Runtime = plugin_at(self._orders.runtime)
        left = runtime.clear(self.plan.run_dir, plan_json.public(self.plan))
        if left:
            log.warning("%s: still there: %s", self.plan.name, ", ".join(left))
        from launcher.runtimes.process import remove_leftovers

        remove_leftovers(self.plan, self._since)
        return left


class NoAnswerError(DeploymentError):
    """A supervisor is there, and says nothing, or nothing that is understood."""


class Connection:
    """A supervisor that is not ours, by the socket in its folder. Raises `OSError` where none is there."""

    def __init__(self, folder: Path, timeout_s: float = 5.0) -> None:
        self._name = folder.name
        self._timeout_s = timeout_s
        self._heard = b""
        try:
            self._socket = connect(folder, timeout_s)
        except (TimeoutError, BlockingIOError) as exc:  # more wait for it already than the kernel keeps
            raise self._silent() from exc

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def tell(self, op: str) -> None:
        """Ask for what has no answer of its own: stop, restart. Asking one that has ended does nothing."""
        self._socket.settimeout(self._timeout_s)
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({"op": op}).encode() + b"\n")

    def ask(self, op: str) -> dict[str, Any]:
        """Ask for `op`, and return the answer. Raises `NoAnswerError`, or `DeploymentError` where it ended before."""
        self.tell(op)
        try:
            line = self._line(time.monotonic() + self._timeout_s)
        except TimeoutError as exc:
            raise self._silent() from exc
        if not line:
            raise DeploymentError(f"{self._name}: its supervisor ended before it answered")
        try:
            answer = bounded_json.parse(line)
        except ValueError as exc:
            raise NoAnswerError(f"{self._name}: its supervisor's answer to {op} is not understood: {exc}") from exc
        if "error" in answer:
            raise NoAnswerError(f"{self._name}: its supervisor refuses {op}: {str(answer['error'])[:200]!r}")
        return answer

    def learn(self, op: str, kind: type[T]) -> T:
        """Ask for `op`, and return the answer as a `kind`. Raises as `ask` does."""
        try:
            return dataclass_json.load(kind, self.ask(op))
        except ValueError as exc:
            raise NoAnswerError(
                f"{self._name}: its supervisor is of another version of rmlaunch, and its answer to {op} is not "
                f"understood ({exc}); stop {self._name} and start it again"
            ) from exc

    def follow(self, deadline: float, *ops: str) -> Iterator[News]:
        """The state, and each change of it from now on, until the supervisor ends or `deadline` (monotonic) is over.

        `ops` are asked for by then: whoever asks for a stop first may come too late to hear of it.
        """
        for op in ("follow", *ops):
            self.tell(op)
        with contextlib.suppress(TimeoutError, NoAnswerError):
            while line := self._line(deadline):
                yield self._news(line)

    def until(self, done: Callable[[News], bool], *ops: str, deadline: float = math.inf) -> News | None:
        """Ask for `ops`, and return the first news that `done` accepts; None where the supervisor has ended before.

        One that works at it takes the time that it needs, at most until `deadline` (monotonic): it is asked again and
        again whether it is there. Raises `NoAnswerError` where it is not, and `DeploymentError` after `deadline`.
        """
        for op in ("follow", *ops):
            self.tell(op)
        heard, limit = time.monotonic(), _ANSWER_S
        while True:
            try:
                line = self._line(min(time.monotonic() + _PING_S, deadline))
            except TimeoutError:
                if time.monotonic() >= heard + limit:
                    raise self._silent() from None
                if time.monotonic() >= deadline:
                    late = f"{self._name} takes longer than expected; see `rmlaunch status {self._name}`"
                    raise DeploymentError(late) from None
                self.tell("follow")
                continue
            if not line:
                return None
            news, limit = self._news(line), _BUSY_S
            if done(news):
                return news
            if news.phase is not Phase.UNKNOWN:
                heard = time.monotonic()

    def _news(self, line: bytes) -> News:
        try:
            return News.read(line)
        except ValueError as exc:
            return News(Phase.UNKNOWN, f"its supervisor's word is not understood: {exc}")

    def _line(self, deadline: float) -> bytes:
        """The next line; empty where the supervisor has ended. Raises `TimeoutError` after `deadline`."""
        while b"\n" not in self._heard and len(self._heard) <= bounded_json.LIMIT_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                piece = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:  # it was killed before it had read everything
                piece = b""
            if not piece:
                return b""
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line + b"\n"  # too long a line is refused where it is parsed

    def _silent(self) -> NoAnswerError:
        return NoAnswerError(
            f"{self._name}: its supervisor does not answer; `rmlaunch stop {self._name} --now` ends it by force"
        )
