"""The process that owns one deployment: it starts the engine, proves it, restarts it, and leaves nothing of it.

    python -m launcher.supervisor CONTROL_FD

Its owner (`launcher.control`) sends it the deployment's lock and one line of JSON with its orders, then
`{"op": "stop"}` lines; it answers with a line for each change of state. When the owner is gone, so is the engine. It
imports neither Hydra nor an engine.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import logging
import os
import queue
import random
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.base import DeploymentError, LaunchPlan
from launcher import structs
from launcher.atomic import write_text
from launcher.diagnosis import explain
from launcher.lifecycle import (
    Action,
    BackoffOver,
    Begin,
    Crashed,
    Ended,
    Event,
    GraceOver,
    Phase,
    Policy,
    RestartAfter,
    Stable,
    StartEngine,
    State,
    StopAsked,
    Sweep,
    Terminate,
    WatchLiveness,
    step,
)
from launcher.probes import Watch
from launcher.runtimes.base import Handle, Runtime

log = logging.getLogger(__name__)

_LOGS_KEPT = 10
_TAIL_BYTES = 8192
_OWNER_TIMEOUT_S = 2.0  #: an owner that does not read must not keep us from supervising


@dataclass(frozen=True, slots=True)
class Orders:
    """What the owner asks for."""

    plan: LaunchPlan
    runtime: str  #: `module:class`; looking through entry points would cost a fifth of the start
    folder: Path  #: of the deployment
    policy: Policy
    stop_grace_s: float
    stable_s: float
    api_key: str | None = None

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Orders:
        return cls(
            plan=structs.load(LaunchPlan, data["plan"]),
            runtime=data["runtime"],
            folder=Path(data["folder"]),
            policy=Policy(**data["policy"]),
            stop_grace_s=data["stop_grace_s"],
            stable_s=data["stable_s"],
            api_key=data["api_key"],
        )


class Supervisor:
    """One thread owns the state: it takes events from the probes, the kernel, the clock and the owner, in turn."""

    def __init__(self, orders: Orders, runtime: Runtime, control: socket.socket) -> None:
        self.state = State()
        self._orders = orders
        self._runtime = runtime
        self._control = control
        self._control.settimeout(_OWNER_TIMEOUT_S)
        self._incoming = b""
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, int, Event]] = []  # due, tie-break, start, event
        self._ties = itertools.count()
        self._start = 0  #: how many times the engine was started; events of an earlier start are stale
        self._handle: Handle | None = None
        self._watch: Watch | None = None
        self._left: tuple[str, ...] = ()
        self._log_file = orders.folder / "logs" / "none"
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)

    def run(self) -> State:
        """Supervise until the verdict, which is returned; by then nothing of the engine is left."""
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._post(StopAsked()))
        self._feed(Begin())
        while not self.state.phase.final:
            self._wait()
            self._notice_exit()
            while self._timers and self._timers[0][0] <= time.monotonic():
                _, _, start, event = heapq.heappop(self._timers)
                self._feed_of(start, event)
            while not self._events.empty():
                self._feed_of(*self._events.get())
        return self.state

    # -------------------------------------------------------------------------------------------------- events in

    def _wait(self) -> None:
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._control:
                self._hear_owner()
            else:
                self._wake_in.recv(4096)

    def _hear_owner(self) -> None:
        data = self._control.recv(65536)
        if not data:  # the owner is gone: do not wait for a drain that nobody asked for
            self._selector.unregister(self._control)
            self._feed(StopAsked())
            self._feed(StopAsked())
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            if json.loads(line)["op"] == "stop":
                self._feed(StopAsked())

    def _notice_exit(self) -> None:
        if self._handle is None or (code := self._runtime.poll(self._handle)) is None:
            return
        self._handle = None
        if self.state.phase is Phase.STOPPING:
            self._feed(Ended())
            return
        verdict = explain(code, self._tail())
        self._feed(Crashed(verdict.sentence, verdict.permanent))

    def _post(self, event: Event, start: int | None = None) -> None:
        """Hand over an event of one start (None: of whichever runs) from another thread or a signal handler."""
        self._events.put((self._start if start is None else start, event))
        with contextlib.suppress(BlockingIOError):  # so full that it is about to wake anyway
            self._wake_out.send(b"\0")

    def _after(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._ties), self._start, event))

    def _feed_of(self, start: int, event: Event) -> None:
        if start == self._start:
            self._feed(event)

    def _feed(self, event: Event) -> None:
        before = self.state
        self.state, actions = step(before, event, self._orders.policy)
        for action in actions:
            self._perform(action)
        if self.state.phase.final:  # before it is said: nothing is left by then
            shutil.rmtree(self._orders.plan.run_dir, ignore_errors=True)
        if (self.state, actions) != (before, ()):
            self._announce()

    # ------------------------------------------------------------------------------------------------ actions out

    def _perform(self, action: Action) -> None:
        match action:
            case StartEngine():
                self._start_engine()
            case WatchLiveness():
                self._after(self._orders.stable_s, Stable())
            case Terminate():
                self._cancel_watch()
                if self._handle is not None:
                    self._runtime.terminate(self._handle)
                self._after(self._orders.stop_grace_s, GraceOver())
            case Sweep():
                self._cancel_watch()
                self._left = self._runtime.sweep(self._orders.plan)
                self._handle = None
            case RestartAfter(seconds):
                self._after(seconds * random.uniform(0.8, 1.2), BackoffOver())  # noqa: S311  (jitter, not a secret)

    def _start_engine(self) -> None:
        self._start += 1
        self._log_file = _next_log(self._orders.folder / "logs")
        try:
            self._handle = self._runtime.start(self._orders.plan, self._log_file)
        except DeploymentError as exc:
            self._post(Crashed(str(exc), permanent=True))
            return
        plan, report = self._orders.plan, partial(self._post, start=self._start)
        self._watch = Watch(plan.endpoints.http, plan.probes, self._orders.api_key, report)

    def _cancel_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _announce(self) -> None:
        news = {
            "state": self.state.phase.value,
            "reason": self.state.reason,
            "timed_out": self.state.timed_out,
            "crashes": self.state.crashes,
            "starts": self._start,
            "pid": self._handle.pid if self._handle else None,
            "log": str(self._log_file),
            "timings": self._watch.timings if self._watch else {},
            "leftovers": self._left,
            "tail": self._tail()[-8:] if self.state.phase is Phase.FAILED else [],
        }
        text = json.dumps(news)
        try:
            self._control.sendall(text.encode() + b"\n")
        except OSError:
            log.debug("%s: the owner no longer listens", self._orders.plan.name)
        write_text(self._orders.folder / "state.json", text)

    def _tail(self) -> list[str]:
        try:
            with self._log_file.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return stream.read().decode(errors="replace").splitlines()
        except OSError:
            return []


def _next_log(folder: Path) -> Path:
    """A new file for one start; the oldest go when there are many."""
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = sorted(folder.glob("[0-9]*.log"))
    for old in kept[: max(0, len(kept) - _LOGS_KEPT + 1)]:
        old.unlink()
    number = int(kept[-1].stem) + 1 if kept else 1
    return folder / f"{number:06d}.log"


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    if not descriptors:
        return  # the owner ended before it gave orders
    # The lock's descriptor stays open until this process ends; the engine does not inherit it.
    _lock, output = descriptors
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    with control.makefile("rb", buffering=0) as lines:
        first = lines.readline()
    if not first.endswith(b"\n"):
        return
    orders = Orders.load(json.loads(first))
    module, _, name = orders.runtime.partition(":")
    runtime: Runtime = getattr(import_module(module), name)()
    Supervisor(orders, runtime, control).run()


if __name__ == "__main__":
    main()
