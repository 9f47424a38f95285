"""The owner's side of a supervisor: start it, follow what it says, ask it to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.base import DeploymentError, ExitedBeforeReady, LaunchPlan, ReadyTimeout, StoppedBeforeReady
from launcher import plans, registry
from launcher.ledger import Claim
from launcher.lifecycle import Phase
from launcher.schema import SuperviseConf
from launcher.spawn import Spawned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What the supervisor said last."""

    phase: Phase = Phase.PENDING
    reason: str = ""
    timed_out: bool = False
    crashes: int = 0
    starts: int = 0
    pid: int | None = None
    log: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @classmethod
    def read(cls, line: bytes) -> News:
        data: dict[str, Any] = json.loads(line)
        data |= {key: tuple(data[key]) for key in ("leftovers", "tail")}
        return cls(phase=Phase(data.pop("state")), **data)


class Supervised:
    """A supervisor process that is ours: it and its engine end with us, however we end."""

    def __init__(
        self,
        spawned: Spawned,
        plan: LaunchPlan,
        claim: Claim,
        supervise: SuperviseConf,
        api_key: str | None,
        on_news: Callable[[News], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.news = News()
        self._claim = claim
        self._on_news = on_news
        self._changed = threading.Condition()
        self._was_ready = False
        self._closed = False
        self._since = time.time()
        self._spawned = spawned
        orders = {
            "plan": plans.whole(plan),
            "runtime": registry.place("runtime", plan.runtime),
            "folder": str(claim.folder),
            "policy": {
                "max_crashes": supervise.max_crashes,
                "backoff_s": supervise.backoff_s,
                "backoff_max_s": supervise.backoff_max_s,
            },
            "stop_grace_s": supervise.stop_grace_s,
            "stable_s": supervise.stable_s,
            "api_key": api_key,
        }
        with (claim.folder / "supervisor.log").open("ab") as output:
            spawned.give(json.dumps(orders).encode(), claim.lock, output.fileno())
        threading.Thread(target=self._listen, name="supervisor news", daemon=True).start()

    def wait_ready(self) -> News:
        """Block until the engine serves. Raises the `DeploymentError` that fits, with cause and last lines."""
        news = self._wait(lambda news: self._was_ready or news.phase.final, None)
        if news.phase.final:
            raise self.failure()
        return news

    def wait_final(self, timeout_s: float | None = None) -> News:
        """Block until the deployment has ended, at most `timeout_s`."""
        return self._wait(lambda news: news.phase.final, timeout_s)

    def stop(self) -> None:
        """Ask for a drain and a stop; a second call kills. Does not wait; asking one that has ended does nothing."""
        with contextlib.suppress(OSError):
            self._spawned.control.sendall(b'{"op": "stop"}\n')

    def close(self) -> None:
        """Let go: a supervisor that still runs kills its engine now. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._spawned.close()
        self._sweep_if_orphaned()
        self._claim.release()

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

    def _wait(self, done: Callable[[News], bool], timeout_s: float | None) -> News:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not done(self.news):
                left = 0.5 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))  # short, so that a signal is handled in between
        return self.news

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._spawned.control.makefile("rb") as lines:
            for line in lines:
                self._take(News.read(line))
        if not self.news.phase.final:
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

    def _sweep_if_orphaned(self) -> None:
        """A supervisor that was killed took the engine's leader along; its workers are ours to end."""
        if self._spawned.process.returncode == 0:
            return
        from launcher.runtimes.process import kill_marked, remove_leftovers

        kill_marked(self.plan.run_dir, 5.0)
        remove_leftovers(self.plan, self._since)
