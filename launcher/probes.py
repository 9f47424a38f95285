"""Checks over HTTP: start-up, then a real request, then liveness; run in a thread, reported as lifecycle events."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.base import Endpoint, HttpCheck, InferenceError, KeyFile, Probes
from launcher.lifecycle import Crashed, Event, Missed, Proved, Recovered, TimedOut

if TYPE_CHECKING:
    import http.client

#: between two looks at a server that is starting; it bounds how late READY is said
_STARTING_PERIOD_S = 0.01
_PATIENCE_S = 10.0
_CHECK_TIMEOUT_S = 5.0
_BODY_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Door:
    """Where the checks of one server go, and with which key."""

    endpoint: Endpoint
    api_key: str | None = None
    key: KeyFile | None = None  #: of a server that makes its own

    def bearer(self, probe: HttpCheck) -> str | None:
        key = probe.key or self.key
        return key.read() if key else self.api_key


@dataclass(frozen=True, slots=True)
class Missing:
    """What came in place of what a check waits for."""

    words: str
    final: bool = False  #: waiting will not change it


def check(door: Door, probe: HttpCheck, timeout_s: float) -> Missing | None:
    """Do `probe` once, in `timeout_s` in all. Returns None where it passed, else what came instead."""
    deadline = time.monotonic() + timeout_s
    import http.client  # not at the top: it would keep the engine's first start waiting

    body = json.dumps(probe.body) if probe.body is not None else None
    try:
        headers = {"Content-Type": "application/json"}
        if bearer := door.bearer(probe):
            headers["Authorization"] = f"Bearer {bearer}"
        connection = _connection(probe.endpoint or door.endpoint, timeout_s)
        try:
            connection.request(probe.method, f"{(probe.endpoint or door.endpoint).path}{probe.path}", body, headers)
            response = connection.getresponse()
            answer = _read(connection, response, deadline)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, InferenceError) as exc:
        return Missing(f"{type(exc).__name__} from {probe.path}: {exc}")
    words = _judge(probe, response.status, answer)
    return Missing(words, final=probe.final and response.status < 500) if words else None


def _connection(endpoint: Endpoint, timeout_s: float) -> http.client.HTTPConnection:
    import http.client

    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    return kind(endpoint.host, endpoint.port, timeout=timeout_s)


def _judge(probe: HttpCheck, status: int, answer: bytes) -> str:
    shown = answer[:300].decode(errors="replace").strip()
    if status != 200:
        return f"{status} from {probe.path}: {shown}"
    if not probe.expect:
        return ""
    values = _values(answer, probe.expect)
    if probe.among is not None and probe.among not in values:
        have = ", ".join(map(repr, values[:20])) or "nothing"
        return f"{probe.path} has {have} at {probe.expect}, and not {probe.among!r}"
    if not any(values):  # 0 tokens and an empty text are no answer
        return f"200 from {probe.path}, but no {probe.expect!r} in {shown!r}"
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
        door: Door,
        probes: Probes,
        is_ours: Callable[[], bool],
        report: Callable[[Event], None],
    ) -> None:
        self._is_ours = is_ours
        self._door = door
        self._probes = probes
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
            limit = self._probes.settings.startup_timeout_s
            late = TimedOut(f"not ready after {limit:g} s (supervise.startup_timeout_s): {failure.words}")
            self._say(Crashed(failure.words, permanent=True) if failure.final else late)
            return
        self._say(Proved())
        self._until_dead()

    def _until_ready(self) -> Missing | None:
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
        return missing

    def _repeat(self, attempt: Callable[[], Missing | None], deadline: float) -> Missing | None:
        while not self._cancelled.is_set():
            missing = attempt()
            if not missing or missing.final or time.monotonic() > deadline:
                return missing
            # Short loads are noticed at once; minutes of looking cost less, and stay below 50 ms.
            waited = time.monotonic() - self._began
            self._cancelled.wait(_STARTING_PERIOD_S if waited < _PATIENCE_S else 4 * _STARTING_PERIOD_S)
        return None

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
        return None if self._is_ours() else Missing(f"another process answers on {self._door.endpoint}")

    def _until_dead(self) -> None:
        settings = self._probes.settings
        failures = 0
        while not self._cancelled.wait(settings.liveness_period_s):
            missing = self._try(self._probes.liveness, settings.liveness_timeout_s)
            if not missing and failures:
                self._say(Recovered())
            failures = failures + 1 if missing else 0
            if missing and failures >= settings.liveness_failures:
                self._say(Crashed(f"{failures} liveness checks in a row failed: {missing.words}"))
                return
            if missing:
                self._say(Missed(missing.words))

    def _try(self, probe: HttpCheck, timeout_s: float) -> Missing | None:
        return check(self._door, probe, max(timeout_s, 0.1))

    def _say(self, event: Event) -> None:
        if not self._cancelled.is_set():
            self._report(event)


def _values(answer: bytes, path: str) -> Sequence[Any]:
    """What the dotted `path` leads to in the JSON `answer`; `*` goes through a whole list."""
    try:
        values: list[Any] = [json.loads(answer)]
        for part in path.split("."):
            if part == "*":
                values = [item for value in values for item in value]
            else:
                values = [value[int(part)] if isinstance(value, list) else value[part] for value in values]
    except (ValueError, KeyError, IndexError, TypeError):
        return []
    return values
