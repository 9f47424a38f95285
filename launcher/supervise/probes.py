"""Checks of a server over HTTP, and the numbers that it counts."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.base import Endpoint, HttpCheck, InferenceError, KeyFile

if TYPE_CHECKING:
    import http.client

_BODY_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Door:
    """The address that the checks of one server go to, and their key."""

    endpoint: Endpoint
    api_key: str | None = None
    key: KeyFile | None = None  #: of a server that makes its own

    def bearer(self, probe: HttpCheck) -> str | None:
        """Return the key for `probe`; None where it needs none."""
        key = probe.key or self.key
        return key.read() if key else self.api_key


@dataclass(frozen=True, slots=True)
class Missing:
    """The words for what came instead of what a check waits for."""

    words: str
    final: bool = False  #: waiting will not change it


class UnreachableError(Exception):
    """No answer, in words."""


def check(door: Door, probe: HttpCheck, timeout_s: float) -> Missing | None:
    """Do `probe` once, in `timeout_s` in all. Returns None where it passed, else what came instead."""
    try:
        status, answer = _answer(door, probe, timeout_s)
    except UnreachableError as exc:
        return Missing(str(exc))
    words = _judge(probe, status, answer)
    return Missing(words, final=probe.final and status < 500) if words else None


def _answer(door: Door, probe: HttpCheck, timeout_s: float) -> tuple[int, bytes]:
    """Status and body, in `timeout_s` in all. Raises `UnreachableError`."""
    import http.client  # not at the top: it would keep the engine's first start waiting

    deadline = time.monotonic() + timeout_s
    endpoint = probe.endpoint or door.endpoint
    body = json.dumps(probe.body) if probe.body is not None else None
    headers = {"Content-Type": "application/json"}
    try:
        if bearer := door.bearer(probe):
            headers["Authorization"] = f"Bearer {bearer}"
        connection = _connection(endpoint, timeout_s)
        try:
            with _cut_after(timeout_s, connection):
                connection.request(probe.method, f"{endpoint.path}{probe.path}", body, headers)
                response = connection.getresponse()
            return response.status, _read(connection, response, deadline)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, InferenceError) as exc:
        raise UnreachableError(f"{type(exc).__name__} from {probe.path}: {exc}") from exc


def _connection(endpoint: Endpoint, timeout_s: float) -> http.client.HTTPConnection:
    import http.client

    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    return kind(endpoint.host, endpoint.port, timeout=timeout_s)


@contextlib.contextmanager
def _cut_after(seconds: float, connection: http.client.HTTPConnection) -> Iterator[None]:
    """Shut `connection` down where the block takes longer than `seconds`. Raises `TimeoutError`.

    A socket's timeout is for each read: a head that never ends, or 100 Continue for ever, would keep the thread.
    """
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_over.is_set():  # whatever came of it: a head that was cut reads like a whole one
            raise TimeoutError("its head did not end in time")


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


def count(door: Door, url: str, names: Sequence[str], timeout_s: float) -> float | None:
    """Return the sum of the Prometheus samples at `url` that are called `names`, whatever their labels.

    None where there are none, or they cannot be read.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    place = Endpoint(parts.hostname or "", parts.port or 80, parts.scheme)
    try:
        status, text = _answer(door, HttpCheck(parts.path, endpoint=place), timeout_s)
    except UnreachableError:
        return None
    samples = [line.rpartition(" ")[2] for line in text.decode(errors="replace").splitlines() if _is_one(line, names)]
    with contextlib.suppress(ValueError):  # no number
        return sum(map(float, samples)) if status == 200 and samples else None
    return None


def _is_one(line: str, names: Sequence[str]) -> bool:
    return any(line.startswith(name) and line[len(name) : len(name) + 1] in ("{", " ") for name in names)


def _values(answer: bytes, path: str) -> Sequence[Any]:
    """Return the values that the dotted `path` leads to in the JSON `answer`; `*` goes through a whole list."""
    try:
        values: list[Any] = [json.loads(answer)]
        for part in path.split("."):
            if part == "*":
                values = [item for value in values for item in value]
            else:
                values = [value[int(part)] if isinstance(value, list) else value[part] for value in values]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return []
    return values
