"""A thread that reads the ledger a few times a second, and tells the gateway's thread what is deployed.

It reads what supervisors write down, and asks one of them only when its engine has been started anew, for what it takes
to reach it. A deployment whose supervisor was killed serves on, and is given another one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.base import LaunchPlan, RmLaunchError
from launcher import registry
from launcher.atomic import version
from launcher.config.gateway import ENGINE
from launcher.deployments.connection import Connection
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.gateway.routing import Upstream
from launcher.supervise import protocol
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News

log = logging.getLogger(__name__)

PERIOD_S = 0.2
#: seconds between two attempts to find another supervisor for a deployment that has none
_ADOPT_S = 5.0

#: seconds for a supervisor to say how its engine is reached: it has nothing else to do, and the others wait
_ASK_S = 1.0
#: seconds until one that did not say so is asked again
_SILENT_S = 5.0

#: the mark of a deployment whose record is not to be understood
_TROUBLE = ("trouble",)

_ON_ITS_WAY = frozenset({Phase.PENDING, Phase.PREPARING, Phase.STARTING, Phase.BACKOFF})


@dataclass(frozen=True, slots=True)
class Seen:
    """One local deployment, as it is now."""

    name: str
    phase: Phase
    upstream: Upstream | None
    news: News = field(default_factory=News)
    plan: Mapping[str, Any] = field(default_factory=dict)  #: as `rmlaunch plan --json` prints it

    coming_back: bool = False  #: whoever stops it starts another in its place

    @property
    def on_its_way(self) -> bool:
        """True where it will serve soon, or fail."""
        return self.phase in _ON_ITS_WAY or self.coming_back or (self.phase is Phase.STOPPING and self.news.returns)

    @property
    def cause(self) -> str:
        """The reason for its engine's last end; empty where it was asked to end, or somebody has killed it."""
        asked = self.phase in (Phase.STOPPING, Phase.STOPPED)
        return "" if asked or self.news.killed else self.news.reason


class Watcher:
    """Watches the ledger in a thread of its own.

    `tell` is called from that thread, with each deployment that has changed, and with None for one that is gone.
    """

    def __init__(self, state: Path, tell: Callable[[str, Seen | None], object]) -> None:
        self._state = state
        self._ledger = Ledger(state)
        self._tell = tell
        self._marks: dict[str, tuple[Any, ...]] = {}
        self._seen: dict[str, Seen] = {}
        self._upstreams: dict[str, tuple[int, Upstream]] = {}  #: by name, each with the number of its engine's start
        self._silent: dict[str, float] = {}  #: by name, until when a supervisor that did not answer is left alone
        self._adopting_since = -_ADOPT_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch, soon; waits for nothing."""
        self._ended.set()

    def look(self) -> None:
        """Look once at all that is deployed, and tell what has changed."""
        folders = {path.parent.name: path.parent for path in self._ledger.deployments.glob("*/plan.json")}
        for name in self._marks.keys() - folders.keys():
            del self._marks[name]
            if self._seen.pop(name, None):
                self._tell(name, None)
        for name, folder in folders.items():
            try:
                self._look_at(name, folder)
            except Exception:  # noqa: PERF203  (one deployment's trouble must not hide the others)
                if self._marks.get(name) != _TROUBLE:
                    log.exception("%s: what it says of itself cannot be read", name)
                self._marks[name] = _TROUBLE

    def _look_at(self, name: str, folder: Path) -> None:
        live = self._ledger.is_live(name)
        coming_back = self._ledger.is_coming_back(name)
        mark = (version(folder / "state.json"), version(folder / "plan.json"), live, coming_back)
        if mark != self._marks.get(name) and time.monotonic() >= self._silent.get(name, 0.0):
            self._marks[name] = mark if self._read(name, folder, live, coming_back) else ()  # again, next time

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self.look()
            except Exception:  # noqa: PERF203  (one deployment's trouble must not hide the others from now on)
                log.exception("the ledger cannot be read")

    def _read(self, name: str, folder: Path, live: bool, coming_back: bool) -> bool:
        """Tell what has become of a deployment; return False where that is not to be seen yet."""
        try:
            plan = protocol.read_record(folder).plan
            if not plan:
                return False
            if plan.get("engine") == ENGINE:
                return True
            news = protocol.read_state(folder)
        except FileNotFoundError:  # it is being prepared
            news = News(Phase.PREPARING if live else Phase.STOPPED)
        except (OSError, ValueError):
            return False
        if not live and not news.phase.final:
            self._adopt()
            return False  # what is known of it holds until somebody knows better
        seen = Seen(name, news.phase, self._upstream(name, folder, news), news, plan, coming_back)
        if seen.upstream is None and news.phase in (Phase.READY, Phase.DEGRADED):
            return False
        self._seen[name] = seen
        self._tell(name, seen)
        return True

    def _upstream(self, name: str, folder: Path, news: News) -> Upstream | None:
        """Return where a deployment is reached; None where it does not serve."""
        if news.phase not in (Phase.READY, Phase.DEGRADED):
            self._upstreams.pop(name, None)
            return None
        known = self._upstreams.get(name)
        if known is not None and known[0] == news.starts:
            return known[1]
        try:
            with Connection(folder, _ASK_S) as connection:
                given = connection.learn("target", protocol.Target)
            upstream = upstream_of(given.plan, given.options, given.api_key, news)
        except (OSError, ValueError, KeyError, TypeError, RmLaunchError) as exc:
            log.warning("%s serves, but it cannot be told how to reach it: %s", name, exc)
            self._silent[name] = time.monotonic() + _SILENT_S
            return None
        self._upstreams[name] = (news.starts, upstream)
        return upstream

    def _adopt(self) -> None:
        """Find another supervisor, in a thread of its own: waiting for one takes a while."""
        if time.monotonic() - self._adopting_since < _ADOPT_S:
            return
        self._adopting_since = time.monotonic()

        def adopt() -> None:
            with contextlib.suppress(RmLaunchError, OSError):
                Deployments(self._state).all()

        threading.Thread(target=adopt, name="adopt", daemon=True).start()


def upstream_of(plan: LaunchPlan, options: Mapping[str, Any], api_key: str | None, news: News) -> Upstream:
    """Return how the deployment of `plan` is reached. Raises `RmLaunchError` where its engine or key is not there."""
    http = plan.endpoints.http
    dialect = registry.engine(plan.engine).dialect(plan, options)
    return Upstream(
        host=http.host,
        port=http.port,
        tls=http.scheme == "https",
        path=http.path,
        dialect=dialect,
        model=dialect.model,
        api_key=plan.key.read() if plan.key else api_key,
        start=news.starts,
    )
