"""Checks over HTTP: start-up, then a real request, then liveness; run in a thread, reported as lifecycle events."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engines.base import Endpoint, HttpCheck, Probes
from launcher.lifecycle import Crashed, Event, Missed, Proved, Recovered, TimedOut

if TYPE_CHECKING:
    import http.client

#: between two looks at a server that is starting; it bounds how late READY is said
_STARTING_PERIOD_S = 0.01
_PATIENCE_S = 10.0
_CHECK_TIMEOUT_S = 5.0
_BODY_LIMIT = 1 << 20


def check(endpoint: Endpoint, probe: HttpCheck, timeout_s: float, api_key: str | None = None) -> str:
    """Do `probe` once, in `timeout_s` in all. Returns "" where it passed, else what came instead."""
    deadline = time.monotonic() + timeout_s
    import http.client  # not at the top: it would keep the engine's first start waiting

    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    body = json.dumps(probe.body) if probe.body is not None else None
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
    try:
        connection.request(probe.method, probe.path, body, headers)
        response = connection.getresponse()
        answer = _read(connection, response, deadline)
    except (OSError, http.client.HTTPException) as exc:
        return f"{type(exc).__name__} from {probe.path}: {exc}"
    finally:
        connection.close()
    if response.status != 200:
        return f"{response.status} from {probe.path}: {answer[:300].decode(errors='replace').strip()}"
    if probe.expect and not _leads_somewhere(answer, probe.expect):
        return f"200 from {probe.path}, but no {probe.expect!r} in {answer[:300].decode(errors='replace')!r}"
    return ""


def _read(connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. A socket's timeout is for each read: a server that trickles would never run into it."""
    parts: list[bytes] = []
    while part := response.read1(65536):
        parts.append(part)
        left = deadline - time.monotonic()
        if left <= 0 or sum(map(len, parts)) > _BODY_LIMIT:
            raise TimeoutError("its answer did not end in time")
        if connection.sock is not None:
            connection.sock.settimeout(left)
    return b"".join(parts)


class Watch:
    """The probes of one start of the engine, in a thread of their own.

    `report` is called from that thread with an event; one that is on its way when `cancel` is called may still arrive.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        probes: Probes,
        api_key: str | None,
        is_ours: Callable[[], bool],
        report: Callable[[Event], None],
    ) -> None:
        self._is_ours = is_ours
        self._endpoint = endpoint
        self._probes = probes
        self._api_key = api_key
        self._report = report
        self._cancelled = threading.Event()
        self._began = time.monotonic()
        self.timings: dict[str, float] = {}  #: seconds, of the start-up's parts
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _run(self) -> None:
        failure = self._until_ready()
        if self._cancelled.is_set():
            return
        if failure:
            self._say(TimedOut(failure))
            return
        self._say(Proved())
        self._until_dead()

    def _until_ready(self) -> str:
        """Wait until the server has proved itself; returns what is missing when `startup_timeout_s` are over."""
        deadline = self._began + self._probes.settings.startup_timeout_s
        missing = self._repeat(self._listening, deadline)
        if not missing:
            missing = self._repeat(lambda: self._try(self._probes.startup, _CHECK_TIMEOUT_S), deadline)
        if not missing:
            missing = self._repeat(self._answers_itself, deadline)
        self.timings["startup_s"] = time.monotonic() - self._began
        if not missing:
            asked = time.monotonic()
            missing = self._repeat(lambda: self._try(self._probes.readiness, deadline - time.monotonic()), deadline)
            self.timings["readiness_s"] = time.monotonic() - asked
        limit = self._probes.settings.startup_timeout_s
        return f"not ready after {limit:g} s (supervise.startup_timeout_s): {missing}" if missing else ""

    def _repeat(self, attempt: Callable[[], str], deadline: float) -> str:
        while not self._cancelled.is_set():
            missing = attempt()
            if not missing or time.monotonic() > deadline:
                return missing
            # Short loads are noticed at once; minutes of looking cost less, and stay below 50 ms.
            waited = time.monotonic() - self._began
            self._cancelled.wait(_STARTING_PERIOD_S if waited < _PATIENCE_S else 4 * _STARTING_PERIOD_S)
        return ""

    def _listening(self) -> str:
        """A bare connect costs a tenth of an HTTP request, and loading can take minutes."""
        family = socket.AF_INET6 if ":" in self._endpoint.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CHECK_TIMEOUT_S)
            refused = probe.connect_ex((self._endpoint.host, self._endpoint.port))
        return f"nothing listens on {self._endpoint}" if refused else ""

    def _answers_itself(self) -> str:
        """Some servers bind their port when the model is loaded; by then another may have it, and answer well."""
        return "" if self._is_ours() else f"another process answers on {self._endpoint}"

    def _until_dead(self) -> None:
        settings = self._probes.settings
        failures = 0
        while not self._cancelled.wait(settings.liveness_period_s):
            missing = self._try(self._probes.liveness, settings.liveness_timeout_s)
            if not missing and failures:
                self._say(Recovered())
            failures = failures + 1 if missing else 0
            if failures >= settings.liveness_failures:
                self._say(Crashed(f"{failures} liveness checks in a row failed: {missing}"))
                return
            if failures:
                self._say(Missed(missing))

    def _try(self, probe: HttpCheck, timeout_s: float) -> str:
        return check(self._endpoint, probe, max(timeout_s, 0.1), self._api_key)

    def _say(self, event: Event) -> None:
        if not self._cancelled.is_set():
            self._report(event)


def _leads_somewhere(answer: bytes, path: str) -> bool:
    try:
        value: Any = json.loads(answer)
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return bool(value)  # 0 tokens and an empty text are no answer
