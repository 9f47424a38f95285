"""The common part of all handlers: their requests, their refusals, and a worker's side of start.py.

If start.py did not start this TorchServe, `loading` and `busy` do nothing.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from bad_request import BadRequestError

JSON = "application/json"

_FOLDER = Path(tempfile.gettempdir())
_BUSY = _FOLDER / "busy"
_FAILED = _FOLDER / "failed"
_LOADS = 2  #: most workers that may be killed while they load


class Context(Protocol):
    """The used part of ts.context.Context; `idx` counts within a batch."""

    request_ids: MutableMapping[int, str]
    stopping_criteria: Mapping[int, Callable[[object], bool | None]]

    def get_all_request_header(self, idx: int) -> Mapping[str, str]:
        """Return the headers of a request."""

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        """Set the HTTP status of an answer, with its words."""

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the Content-Type of an answer."""


class NotThereError(BadRequestError):
    """The client asked for something that this server does not have."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, as the frontend hands it over."""

    path: str  #: rest of the path after the model's name and version
    content_type: str
    body: bytes

    @classmethod
    def of(cls, given: Mapping[str, Any], headers: Mapping[str, str]) -> Request:
        """Read a request from a batch's entry and its headers. Raises `BadRequestError` for a form."""
        if "body" not in given:  # TorchServe takes forms apart
            raise BadRequestError("send the request as a body of Content-Type: application/json, not as a form")
        named = {name.lower(): value for name, value in headers.items()}
        content_type = named.get("content-type", JSON).partition(";")[0].strip().lower()
        return cls(named.get("url_path", ""), content_type, bytes(given["body"]))


@contextmanager
def loading() -> Iterator[None]:
    """End TorchServe if the block, around `initialize`, raises: it would try again for five minutes.

    Workers that are killed while they load, one after the other, end it too: each leaves a file behind that only a
    successful load removes. The frontend is killed together with its unwritten log, so start.py gets the reason in a
    file.
    """
    if not _BUSY.exists():
        yield
        return
    mark = _FOLDER / f"loading-{os.getpid()}"
    killed = [path for path in _FOLDER.glob("loading-*") if not Path("/proc", path.name.partition("-")[2]).exists()]
    try:
        if len(killed) >= _LOADS:
            raise RuntimeError(f"{len(killed)} workers were killed while they loaded the model")
        mark.touch()
        yield
    except Exception:
        _FAILED.write_text(traceback.format_exc())
        os.kill(os.getppid(), signal.SIGKILL)
        raise
    for path in (mark, *killed):
        path.unlink(missing_ok=True)


def end_at_once() -> None:
    """Leave without taking Python apart when the frontend is gone: with torch in it, that takes a second or two.

    Handlers' own atexit functions that are registered after this run before it.
    """
    atexit.register(os._exit, 0)


@contextmanager
def busy() -> Iterator[None]:
    """Keep TorchServe from being stopped while the block, around `handle`, runs, unless it takes too long."""
    if not _BUSY.exists():
        yield
        return
    with _BUSY.open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.utime(file.fileno())


def refusal(exc: Exception) -> tuple[int, bytes]:
    """Return the HTTP status and OpenAI's error for `exc`; errors of the server's own go to the log in full."""
    match exc:
        case NotThereError():
            status = HTTPStatus.NOT_FOUND
        case BadRequestError():
            status = HTTPStatus.BAD_REQUEST
        case _:
            traceback.print_exception(exc)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
    words = str(exc) if isinstance(exc, BadRequestError) else f"{type(exc).__name__}: {exc}"
    error = {"message": words, "type": type(exc).__name__, "code": int(status)}
    return status, json.dumps({"error": error}).encode()


def answer_each(
    data: Sequence[Mapping[str, Any]], context: Context, answer: Callable[[Request], tuple[str, bytes]]
) -> list[bytes]:
    """Answer a batch as a handler's `handle`, each answer whole: `answer` returns a content type and a body."""
    bodies = []
    with busy():
        for number, given in enumerate(data):
            try:
                status = 200
                content_type, body = answer(Request.of(given, context.get_all_request_header(number)))
            except Exception as exc:  # noqa: BLE001  # the edge where one request's failure must not fell the others
                content_type = JSON
                status, body = refusal(exc)
            context.set_response_status(status, HTTPStatus(status).phrase, number)
            context.set_response_content_type(number, content_type)
            bodies.append(body)
    return bodies
