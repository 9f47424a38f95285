"""A server's answer as the client gets it: in OpenAI's words, and with the model's name that it asked for. No I/O."""

from __future__ import annotations

import logging
import re

from engines.base import InferenceError
from engines.dialect import DONE, Call, renamed
from launcher.gateway.body import Budget
from launcher.gateway.routing import Upstream

log = logging.getLogger(__name__)

#: bytes of an answer that is kept until it is whole, at most
_WHOLE_LIMIT = 64 << 20
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
#: bytes of the last events that are kept, to look for the end of the text in them
_TAIL = 4096
#: bytes of one event, at most
_EVENT_LIMIT = 1 << 20
#: bytes of the longest mark at the end of an event
_LONGEST_MARK = 4


def whole(call: Call, upstream: Upstream, name: str, body: bytes) -> bytes:
    """Return a whole answer as the client gets it. Raises `InferenceError` where a 200 has no answer in it."""
    try:
        body = upstream.dialect.whole(call, body)
    except InferenceError:
        raise
    except Exception as exc:
        raise _not_understood(exc) from exc
    return body if upstream.model is None else renamed(body, upstream.model, name)


class Stream:
    """The events of one answer, passed on when they are whole.

    So what is said after a failure is not taken for the rest of an event.
    """

    __slots__ = ("_events", "_name", "_rest", "_tail", "_upstream")

    def __init__(self, call: Call, upstream: Upstream, name: str) -> None:
        self._upstream = upstream
        self._name = name
        self._events = upstream.dialect.events(call)
        self._rest = bytearray()  #: the beginning of an event that is not whole
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` makes whole, for the client; empty where it makes none whole.

        Raises `InferenceError` where the server reports a failure.
        """
        events = self._whole_events(data)
        if not events:
            return b""
        if self._events is not None:
            lines = [line[5:].strip() for line in events.splitlines() if line.startswith(b"data:")]
            try:
                return b"".join([self._events.event(line) for line in lines])
            except InferenceError:
                raise
            except Exception as exc:
                raise _not_understood(exc) from exc
        if self._upstream.model is not None:
            events = renamed(events, self._upstream.model, self._name)
        self._tail = events if len(events) >= _TAIL else (self._tail + events)[-_TAIL:]
        return events

    def _whole_events(self, data: bytes) -> bytes:
        """Return all up to the end of the last whole event, and keep the rest, of which no byte is looked at twice."""
        looked = len(self._rest)
        self._rest += data
        end = _end_of_events(self._rest, max(0, looked - _LONGEST_MARK))
        events = bytes(self._rest[:end])
        del self._rest[:end]
        if len(self._rest) > _EVENT_LIMIT:
            raise InferenceError(f"an event has more than {_EVENT_LIMIT >> 20} MiB")
        return events

    def end(self) -> bytes:
        """Return the last events for the client, at the end of the server's answer.

        Raises `InferenceError` where the text has not come to its end: a connection that is closed in good order looks
        as if it had.
        """
        if self._events is not None:
            return self._events.end()
        if DONE.strip() in self._tail:
            return b""
        if _FINISHED.search(self._tail):
            return DONE
        raise InferenceError("it ended the stream before the text did")

    def release(self) -> None:
        """Do nothing: a stream is not kept."""


class Kept:
    """The body of one answer, which is kept until it is whole: any but a stream."""

    __slots__ = ("_budget", "body", "status")

    def __init__(self, status: int, budget: Budget) -> None:
        self._budget = budget  #: bytes of all bodies that are kept
        self.status = status
        self.body = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Keep `data`, and return nothing for the client yet. Raises `InferenceError` where that is too much."""
        if len(self.body) + len(data) > _WHOLE_LIMIT:
            raise InferenceError(f"its answer has more than {_WHOLE_LIMIT >> 20} MiB")
        if not self._budget.has(len(data)):
            raise InferenceError("answers that are on their way are larger than the gateway can keep")
        self._budget.held += len(data)
        self.body += data
        return b""

    def release(self) -> None:
        """Give back the bytes of the body, which nobody reads any more. To be called once."""
        self._budget.held -= len(self.body)


#: an answer of which nothing has come: shared, and never fed
NOTHING = Kept(0, Budget(0))


def _end_of_events(data: bytearray, start: int) -> int:
    """Return where the last whole event of `data` ends, looked for from `start` on; 0 where none does.

    An event ends after an empty line.
    """
    for mark in (b"\n\n", b"\r\n\r\n"):
        if (at := data.rfind(mark, start)) >= 0:
            return at + len(mark)
    return 0


def _not_understood(exc: Exception) -> InferenceError:
    """Return the error for an answer that a dialect stumbles over: whatever that is, the server has said it."""
    log.warning("an answer that is not understood", exc_info=exc)
    return InferenceError(f"its answer is not understood ({type(exc).__name__}: {str(exc)[:200]})")
