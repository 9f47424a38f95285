"""Many requests at the same time in one worker, streamed, and cancelled when their clients go.

A handler of TorchServe answers one batch after the other and does not learn that a client went away; with
`asyncCommunication` it does not learn it either, and one request's error becomes every request's. Its continuous
batching has none of that: the frontend hands over all requests that are open, sends on what each is answered with,
looks whether its client is still there, and hands over again those that go on. Such a turn is meant to be one step of
a model; here the answers are made by threads or tasks that run all the time, and a turn collects what they have.

    turns = Turns(begin, slots)     # begin(Request, Reply) returns at once; another thread answers
    turns.handle(data, context)     # the handler's `handle`
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from torchserve_worker import JSON, Context, Request, busy, refusal

TURN_S = 0.02  # at most, where a new request may come in
FULL_TURN_S = 0.1  # where none can; a turn costs the two processes about a millisecond
SILENT_S = 1.0  # then an answer begins without a word, because only from then on a client that leaves is seen
LEASE_S = 5.0  # no turn for this long: the last client is gone, and nobody will tell

_EVENTS = "text/event-stream"


class ClientGoneError(Exception):
    """Nobody waits for this answer any more."""


class Reply:
    """What one request is answered with: filled by the thread that answers it, emptied by the turns."""

    def __init__(self, news: threading.Condition) -> None:
        self._news = news
        self._parts: list[bytes] = []
        self._frontend = os.getppid()
        self._accepted: float | None = None
        self._seen = time.monotonic()
        self._gone = False
        self._content_type = JSON
        self._status = 200
        self.finished = False
        self.started = False  #: a part of it has been sent, and with it the status

    def check(self) -> None:
        """Raises `ClientGoneError` where going on is in vain."""
        if self._gone or time.monotonic() - self._seen > LEASE_S or os.getppid() != self._frontend:
            raise ClientGoneError

    def accept(self) -> None:
        """The request is a good one: from now on its answer may begin, though nothing can be said yet."""
        self._accepted = time.monotonic()

    def send(self, event: bytes) -> None:
        """A part of an answer that goes on: one server-sent event."""
        with self._news:
            self._content_type = _EVENTS
            self._parts.append(event)
            self._news.notify()

    def finish(self, last: bytes) -> None:
        with self._news:
            self._parts.append(last)
            self.finished = True
            self._news.notify()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """The edge where one request's failure must not fell the others: it becomes its answer."""
        try:
            yield
        except ClientGoneError:
            self.finish(b"")
        except Exception as exc:  # noqa: BLE001
            self._fail(*refusal(exc))

    def _fail(self, status: int, error: bytes) -> None:
        with self._news:
            if not self.started:
                self._parts, self._content_type, self._status = [], JSON, status
            self.finish(error if self._content_type == JSON else b"data: " + error + b"\n\n")

    # The rest is for the turns alone.

    def touch(self) -> None:
        """A turn has seen its request."""
        self._seen = time.monotonic()

    def leave(self) -> None:
        """No turn will see its request again."""
        self._gone = True

    def has_news(self) -> bool:
        return self.finished or bool(self._parts)

    def is_due(self) -> bool:
        waited = self._accepted is not None and self._seen - self._accepted > SILENT_S
        return self.has_news() or self.started or waited

    def hand_over(self, number: int, context: Context) -> tuple[bytes, bool | None]:
        """What there is now, and whether that is the end: None is an end that is the beginning too."""
        body, self._parts = b"".join(self._parts), []
        if self.started:
            return body, self.finished
        self.started = True
        context.set_response_status(self._status, HTTPStatus(self._status).phrase, number)
        context.set_response_content_type(number, self._content_type)
        return body, None if self.finished else False


class Turns:
    """The requests that are open, by the frontend's ids."""

    def __init__(self, begin: Callable[[Request, Reply], object], slots: int) -> None:
        self._begin = begin
        self._slots = slots
        self._open: dict[str, Reply] = {}
        self._news = threading.Condition()

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """One turn: `data` are the requests that are open, with the bodies of those that are new among them."""
        with busy():
            self._meet(data, context)
            wait = TURN_S if len(self._open) < self._slots else FULL_TURN_S
            with self._news:
                self._news.wait_for(lambda: any(reply.has_news() for reply in self._open.values()), wait)
                return self._answers(context, len(data))

    def _meet(self, data: Sequence[Mapping[str, Any]], context: Context) -> None:
        for name in self._open.keys() - set(context.request_ids.values()):
            self._open.pop(name).leave()
        for number, name in context.request_ids.items():
            if name in self._open:
                self._open[name].touch()
            else:
                reply = self._open[name] = Reply(self._news)
                with reply.failures():
                    self._begin(Request.of(data[number], context.get_all_request_header(number)), reply)

    def _answers(self, context: Context, count: int) -> list[bytes]:
        """A body for each request; those that are not in `request_ids` any more are not answered in this turn."""
        answers = [b""] * count
        ends: dict[int, Callable[[object], bool | None]] = {}
        context.stopping_criteria = ends
        for number, name in list(context.request_ids.items()):
            reply = self._open[name]
            if not reply.is_due():
                del context.request_ids[number]
                continue
            answers[number], end = reply.hand_over(number, context)
            ends[number] = _said(end)
            if reply.finished:
                del self._open[name]
        return answers


def _said(end: bool | None) -> Callable[[object], bool | None]:
    """`end` as TorchServe asks for it: by a function of the answer."""
    return lambda _: end
