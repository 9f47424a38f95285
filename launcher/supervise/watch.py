"""The probes of one start of the engine: start-up, then a real request, then liveness, reported as lifecycle events.

Liveness is progress: the engine's counters grow, or, where they stand still, a real request is answered.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from engines.base import HttpCheck, Probes
from launcher.runtimes.base import Activity
from launcher.supervise.lifecycle import Crashed, Event, Missed, Proved, Recovered, TimedOut
from launcher.supervise.probes import Door, Missing, check, count

#: between two looks at a server that is starting; it bounds how late READY is said
_STARTING_PERIOD_S = 0.01
_PATIENCE_S = 10.0
_CHECK_TIMEOUT_S = 5.0
_LOOK_PERIOD_S = 1.0
#: of a core, on average since the last look: what an idle server takes is far below
_BUSY_SHARE = 0.1
#: of `liveness_timeout_s`: numbers come at once, or the server hangs and a request will show it
_COUNTING_SHARE = 0.25


class Effort:
    """Signs of life of a program: what its processes and its log show since it was looked at last.

    A program that cannot be seen is believed to move and not to work.
    """

    def __init__(self, activity: Callable[[], Activity | None], log_bytes: Callable[[], int]) -> None:
        self._activity = activity
        self._log_bytes = log_bytes
        self._last: tuple[float, Activity | None, int] = (0.0, None, 0)

    def moved(self) -> bool:
        """A line in the log, bytes read or processor time: signs of a start that goes on."""
        return self._look()[1]

    def worked(self) -> bool:
        """Processor time: a server that hangs still reads requests and logs them."""
        return self._look()[0]

    def _look(self) -> tuple[bool, bool]:
        (then, was, had), self._last = self._last, (time.monotonic(), self._activity(), self._log_bytes())
        now, activity, size = self._last
        if activity is None or was is None:
            return False, True
        worked = activity.cpu_s - was.cpu_s > _BUSY_SHARE * (now - then)
        return worked, worked or activity.read_bytes > was.read_bytes or size > had


class Watch:
    """The probes of one start of the engine, in a thread of their own.

    `report` is called from that thread with an event; one that is on its way when `cancel` is called may still arrive.
    """

    def __init__(
        self,
        door: Door,
        probes: Probes,
        is_ours: Callable[[], bool],
        report: Callable[[Event], None],
        effort: Effort,
        metrics: str | None = None,
    ) -> None:
        """`metrics` is the URL of the counters that `probes.progress` names."""
        self._is_ours = is_ours
        self._effort = effort
        self._metrics = metrics
        self._door = door
        self._probes = probes
        self._report = report
        self._cancelled = threading.Event()
        self._began = self._moved = self._looked = time.monotonic()
        self.timings: dict[str, float] = {}  #: seconds, of the start-up's parts and of the last liveness request
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def cancel(self) -> None:
        """Stop checking; nothing is reported any more. Does not wait for a check that is on its way."""
        self._cancelled.set()

    def _run(self) -> None:
        failure = self._until_ready()
        if self._cancelled.is_set():
            return
        if failure:
            self._say(Crashed(failure.words, permanent=True) if failure.final else TimedOut(self._late(failure)))
            return
        self._say(Proved())
        self._until_dead()

    def _late(self, failure: Missing) -> str:
        settings = self._probes.settings
        if self._has_stalled():
            return (
                f"nothing moved for {settings.stall_timeout_s:g} s (supervise.stall_timeout_s), neither its log nor "
                f"the processor: {failure.words}"
            )
        return f"not ready after {settings.startup_timeout_s:g} s (supervise.startup_timeout_s): {failure.words}"

    def _has_stalled(self) -> bool:
        return time.monotonic() - self._moved > self._probes.settings.stall_timeout_s

    def _look(self) -> None:
        """Note whether a start goes on; not at every turn, since it goes through all processes."""
        now = time.monotonic()
        if now - self._looked > min(_LOOK_PERIOD_S, self._probes.settings.stall_timeout_s / 2):
            self._looked = now
            if self._effort.moved():
                self._moved = now

    def _until_ready(self) -> Missing | None:
        """Wait until the server has proved itself; returns what is missing when `startup_timeout_s` are over."""
        deadline = self._began + self._probes.settings.startup_timeout_s
        missing = self._repeat(self._serves, deadline)
        self.timings["startup_s"] = time.monotonic() - self._began
        if not missing:
            asked = time.monotonic()
            missing = self._repeat(lambda: self._try(self._probes.readiness, deadline - time.monotonic()), deadline)
            self.timings["readiness_s"] = time.monotonic() - asked
        return missing

    def _repeat(self, attempt: Callable[[], Missing | None], deadline: float) -> Missing | None:
        while not self._cancelled.is_set():
            missing = attempt()
            if not missing or missing.final or time.monotonic() > deadline or self._has_stalled():
                return missing
            self._look()
            # Short loads are noticed at once; minutes of looking cost less, and stay below 50 ms.
            waited = time.monotonic() - self._began
            self._cancelled.wait(_STARTING_PERIOD_S if waited < _PATIENCE_S else 4 * _STARTING_PERIOD_S)
        return None

    def _serves(self) -> Missing | None:
        return self._listening() or self._try(self._probes.startup, _CHECK_TIMEOUT_S) or self._answers_itself()

    def _listening(self) -> Missing | None:
        """A bare connect costs a tenth of an HTTP request, and loading can take minutes."""
        endpoint = self._door.endpoint
        try:
            socket.create_connection((endpoint.host, endpoint.port), _CHECK_TIMEOUT_S).close()
        except OSError as exc:
            return Missing(f"nothing listens on {endpoint}: {exc}")
        return None

    def _answers_itself(self) -> Missing | None:
        """Some servers bind their port when the model is loaded; by then another may have it, and answer well."""
        if self._is_ours():
            return None
        self._cancelled.wait(_LOOK_PERIOD_S)  # who listens is asked of all processes
        return Missing(f"another process answers on {self._door.endpoint}")

    def _until_dead(self) -> None:
        settings = self._probes.settings
        failures, proved, counted = 0, time.monotonic(), self._count()
        while not self._cancelled.wait(settings.liveness_period_s):
            before, counted = counted, self._count()
            missing = None if _grew(before, counted) else self._ask_canary()
            if missing and self._is_busy(counted, proved):
                counted = self._count()
                continue
            if not missing:
                proved, counted = time.monotonic(), self._count()  # the canary counts too
                if failures:
                    self._say(Recovered())
            failures = failures + 1 if missing else 0
            if missing and failures >= settings.liveness_failures:
                self._say(Crashed(f"{failures} liveness checks in a row failed: {missing.words}"))
                return
            if missing:
                self._say(Missed(missing.words))

    def _ask_canary(self) -> Missing | None:
        self._effort.worked()  # what it does from here on is compared with this
        asked = time.monotonic()
        missing = self._try(self._probes.liveness, self._probes.settings.liveness_timeout_s)
        self.timings["liveness_s"] = time.monotonic() - asked
        return missing

    def _is_busy(self, counted: float | None, proved: float) -> bool:
        """Return whether a canary waits behind the requests of others.

        That those are answered shows in the engine's counters, or at least in the processor's time; the latter is
        believed for `busy_timeout_s`, since an endless loop takes time too.
        """
        if counted is not None and _grew(counted, self._count()):
            return True
        return self._effort.worked() and time.monotonic() - proved < self._probes.settings.busy_timeout_s

    def _count(self) -> float | None:
        if not self._metrics or not self._probes.progress:
            return None
        timeout_s = self._probes.settings.liveness_timeout_s * _COUNTING_SHARE
        return count(self._door, self._metrics, self._probes.progress, timeout_s)

    def _try(self, probe: HttpCheck, timeout_s: float) -> Missing | None:
        return check(self._door, probe, max(timeout_s, 0.1))

    def _say(self, event: Event) -> None:
        if not self._cancelled.is_set():
            self._report(event)


def _grew(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after > before
