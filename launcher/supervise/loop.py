"""The loop that a supervisor waits in: sockets, timers, and events that other threads and signal handlers post.

    while …:
        for client, ready in loop.wait(): …     # watched descriptors have been called back by then
        for start, event in loop.posted(): …
        for start, event in loop.due(): …

An event belongs to one start of the engine, by its number, so that one of an earlier start is known as stale; an event
of all starts has None. One thread runs the loop; `post` alone may be called from others.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from launcher.supervise.control_socket import Client
from launcher.supervise.lifecycle import Event

_CHORES_S = 10.0  #: the longest wait: some things change without telling anybody

Callback = Callable[[], object]


class Loop:
    """A selector, timers, and a queue of posted events. Clients register themselves with `selector`."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._posted: queue.SimpleQueue[tuple[int | None, Event]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, int, Event]] = []  # due, tie-break, start, event
        self._ties = itertools.count()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self.watch(self._wake_in, partial(self._wake_in.recv, 4096))

    def watch(self, descriptor: int | socket.socket, callback: Callback) -> None:
        """Call `callback` from `wait` each time that `descriptor` is readable."""
        self.selector.register(descriptor, selectors.EVENT_READ, callback)

    def forget(self, callback: Callback) -> None:
        """Stop watching every descriptor that `callback` is called for."""
        for key in list(self.selector.get_map().values()):
            if key.data == callback:
                self.selector.unregister(key.fileobj)

    def on_signal(self, number: signal.Signals, event: Event | None) -> None:
        """Post `event` (None: only wake up) whenever this process receives the signal `number`.

        Call it from the main thread.
        """
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None if event is None else self.post(event, None))

    def post(self, event: Event, start: int | None) -> None:
        """Hand over an event of one start (None: of all of them), from any thread or a signal handler."""
        self._posted.put((start, event))
        with contextlib.suppress(BlockingIOError):  # so full that it is about to wake anyway
            self._wake_out.send(b"\0")

    def after(self, seconds: float, event: Event, start: int) -> None:
        """Let `due` give the event `seconds` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._ties), start, event))

    def wait(self) -> Iterator[tuple[Client, int]]:
        """Block until something happens, at most 10 s; yield the clients that are ready, and for what (`EVENT_…`)."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else _CHORES_S
        for key, ready in self.selector.select(min(timeout, _CHORES_S)):
            if isinstance(key.data, Client):
                yield key.data, ready
            else:
                key.data()

    def posted(self) -> Iterator[tuple[int | None, Event]]:
        """Yield the posted events with their starts, those included that are posted meanwhile."""
        while not self._posted.empty():
            yield self._posted.get()

    def due(self) -> Iterator[tuple[int, Event]]:
        """Yield the events whose time has come, with their starts, the earliest first."""
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, start, event = heapq.heappop(self._timers)
            yield start, event

    def close(self) -> None:
        """Give the descriptors back. A supervisor's end does that too: until then, other threads may post."""
        self.selector.close()
        self._wake_in.close()
        self._wake_out.close()
