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

TURN_S = 0.02  # longest turn while a new request may come in
FULL_TURN_S = 0.1  # longest turn while none can; a turn costs the two processes about a millisecond
SILENT_S = 1.0  # after this an answer begins without a word: a client that leaves is seen only from then on
LEASE_S = 5.0  # without a turn for this long the last client is gone, and nobody will tell

_EVENTS = "text/event-stream"


class ClientGoneError(Exception):
    """Nobody waits for this answer any more."""


class Reply:
    """The answer to one request: filled by the thread that answers it, emptied by the turns."""

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
        self.started = False  #: a part of the answer has been sent, and the status with it

    def check(self) -> None:
        """Raise `ClientGoneError` if nobody will read the answer."""
        if self._gone or time.monotonic() - self._seen > LEASE_S or os.getppid() != self._frontend:
            raise ClientGoneError

    def accept(self) -> None:
        """Mark the request as a good one: from now on its answer may begin, even without a word yet."""
        self._accepted = time.monotonic()

    def send(self, event: bytes) -> None:
        """Add one server-sent event to an answer that goes on."""
        with self._news:
            self._content_type = _EVENTS
            self._parts.append(event)
            self._news.notify()

    def finish(self, last: bytes) -> None:
        """Add the last bytes; nothing may be added after them."""
        with self._news:
            self._parts.append(last)
            self.finished = True
            self._news.notify()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn an exception of the block into this request's answer, so that it does not fell the others."""
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

    # The methods below are for the turns alone.

    def touch(self) -> None:
        """Note that a turn has seen this request."""
        self._seen = time.monotonic()

    def leave(self) -> None:
        """Note that no turn will see this request again."""
        self._gone = True

    def has_news(self) -> bool:
        """Return whether there is something to send, the end included."""
        return self.finished or bool(self._parts)

    def is_due(self) -> bool:
        """Return whether to answer in this turn: there is news, the answer began, or it was silent for `SILENT_S`."""
        waited = self._accepted is not None and self._seen - self._accepted > SILENT_S
        return self.has_news() or self.started or waited

    def hand_over(self, number: int, context: Context) -> tuple[bytes, bool | None]:
        """Return the new bytes, and whether they are the end: None for an end that is also the beginning."""
        body, self._parts = b"".join(self._parts), []
        if self.started:
            return body, self.finished
        self.started = True
        context.set_response_status(self._status, HTTPStatus(self._status).phrase, number)
        context.set_response_content_type(number, self._content_type)
        return body, None if self.finished else False


class Turns:
    """The open requests, by the frontend's ids."""

    def __init__(self, begin: Callable[[Request, Reply], object], slots: int) -> None:
        self._begin = begin
        self._slots = slots
        self._open: dict[str, Reply] = {}
        self._news = threading.Condition()

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Run one turn: `data` are the open requests; the new ones among them have bodies."""
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
        """Return a body for each request; those removed from `request_ids` are not answered in this turn."""
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
    """Return `end` as TorchServe asks for it: by a function of the answer."""
    return lambda _: end
