"""The owner's side of a supervisor: give it orders, follow its news, and ask it to stop."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from engines.base import DeploymentError, ExitedBeforeReady, ReadyTimeout, StoppedBeforeReady
from launcher import plan_json
from launcher.deployments.ledger import Claim
from launcher.deployments.spawn import Spawned
from launcher.import_path import load
from launcher.runtimes.base import Runtime
from launcher.supervise import protocol
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News, Orders

log = logging.getLogger(__name__)


class Supervised:
    """A supervisor that this process owns: it and its engine end with us, however we end, unless it is detached."""

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
        """Ask for a drain and a stop; again changes nothing. Does not wait; asking one that has ended does nothing."""
        self._ask("stop")

    def kill(self) -> None:
        """Ask for a stop without a drain, or without the rest of one. Does not wait, as `stop`."""
        self._ask("kill")

    def close(self) -> None:
        """Let go: a supervisor that still runs kills its engine now, unless it is detached. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._orders.detached and self._was_ready and not self.news.phase.final:
            self.detach()
            return
        if self._orders.detached:  # we leave before it is ready: it does not end by itself
            self.kill()
        self._spawned.close()
        self._claim.release(self._sweep_if_orphaned() or self.news.leftovers)

    def detach(self) -> None:
        """Let go of a detached deployment, which goes on."""
        self._closed = True
        self._spawned.detach()
        self._claim.lock.close()

    def failure(self) -> DeploymentError:
        """Return the error that the last news amount to."""
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

    def _ask(self, op: str) -> None:
        with contextlib.suppress(OSError):
            self._spawned.control.sendall(protocol.request(op))

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
                self._take(News.read(line, self.plan.name))
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
        """End what a supervisor that was killed has left: it took the engine's leader along, but no worker.

        Returns a sentence for each that is still there.
        """
        if self._spawned.process.returncode == 0:
            return ()
        runtime: Runtime = load(self._orders.runtime)()
        left = runtime.clear(self.plan.run_dir, plan_json.public(self.plan))
        if left:
            log.warning("%s: still there: %s", self.plan.name, ", ".join(left))
        from launcher.runtimes.process import remove_leftovers

        remove_leftovers(self.plan, self._since)
        return left
