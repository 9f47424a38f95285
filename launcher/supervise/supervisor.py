"""The process that owns one deployment: it starts the engine, proves it, restarts it, and leaves nothing of it.

    python -c "from launcher.supervise.supervisor import main; main()" CONTROL_FD OWNER_PID

Its owner (`launcher.deployments.supervised`) sends it the deployment's lock and one line of JSON with its orders, and
hears a line for each change of state. When the owner is gone, so is the engine, unless the deployment is detached.
Requests, from the owner or from the socket in the deployment's folder, are lines such as `{"op": "stop"}`. A SIGTERM is
a stop too: it drains, and a second one changes nothing. It imports neither Hydra nor an engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from engines.base import DeploymentError
from launcher import trees
from launcher.import_path import load
from launcher.runtimes.base import Handle, Runtime
from launcher.supervise import exposition, logs, protocol
from launcher.supervise.control_socket import Client, listen
from launcher.supervise.device_memory import DeviceMemory
from launcher.supervise.lifecycle import (
    Action,
    BackoffOver,
    Begin,
    Crashed,
    Ended,
    Event,
    GraceOver,
    KillAsked,
    Phase,
    RestartAfter,
    RestartAsked,
    Stable,
    StartEngine,
    State,
    StopAsked,
    Sweep,
    Terminate,
    TimedOut,
    WatchLiveness,
    step,
)
from launcher.supervise.loop import Loop
from launcher.supervise.probes import Door
from launcher.supervise.protocol import News, Numbers, Orders, Target
from launcher.supervise.watch import Effort, Watch

_LAST_WORD_S = 2.0  #: for a client that does not read
_MEMORY_S = 5.0  #: for a driver, to take back the memory of a process that has ended
#: signals that no program sends itself over what it was asked
_FROM_OUTSIDE = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM})


class Supervisor:
    """The owner of a deployment's state: one thread that takes events from probes, kernel, clock and clients."""

    def __init__(self, orders: Orders, runtime: Runtime, owner: socket.socket, owner_end: int | None = None) -> None:
        """Take `orders` from `owner`; `owner_end` is a descriptor that is readable when its process ends."""
        self.state = State(served=orders.served)
        self._orders = orders
        self._runtime = runtime
        self._loop = Loop()
        self._start = 0  #: how many times the engine was started; events of an earlier start are stale
        self._handle: Handle | None = None
        self._watch: Watch | None = None
        self._left: tuple[str, ...] = ()
        self._memory: DeviceMemory | None = None
        self._log_file = orders.home / "logs" / "none"
        self._since = time.time()
        self._exits: Counter[int] = Counter()
        self._killed = False  #: the last crash was a signal from outside
        self._owner = Client(owner, self._loop.selector, follows=True)
        self._clients = [self._owner]
        self._listener = listen(orders.home)
        self._loop.watch(self._listener, self._accept)
        if owner_end is not None:  # a process that it forked may keep its end of the socket open
            self._loop.watch(owner_end, self._lose_owner)

    def run(self) -> State:
        """Supervise until the verdict, which is returned; by then nothing of the engine is left."""
        try:
            return self._run()
        except BaseException:
            self._runtime.sweep(self._orders.plan)  # a bug of ours is no reason to leave processes
            raise

    def _run(self) -> State:
        self._loop.on_signal(signal.SIGCHLD, None)
        # A service manager sends it to owner and supervisor alike: like any other stop, it may come twice.
        self._loop.on_signal(signal.SIGTERM, StopAsked())
        self._feed(Begin())
        self._publish_metrics()
        while not self.state.phase.final:
            for client, ready in self._loop.wait():
                if ready & selectors.EVENT_READ:
                    self._hear(client)
                else:
                    client.flush()
            # Before the exit is noticed: who asks us to stop has often asked the engine too.
            for start, event in self._loop.posted():
                self._feed_of(start, event)
            self._notice_exit()
            logs.rotate(self._log_file, self._orders.log_bytes)
            for start, event in self._loop.due():
                self._feed_of(start, event)
        for client in self._clients:
            if client.follows:
                client.finish(_LAST_WORD_S)
        return self.state

    # -------------------------------------------------------------------------------------------------- events in

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            self._clients.append(Client(self._listener.accept()[0], self._loop.selector))

    def _hear(self, client: Client) -> None:
        requests = client.hear()
        for request in requests or ():
            self._serve(client, request)
        if requests is None:
            if client is self._owner and not self._orders.detached:
                self._lose_owner()
            else:
                self._clients.remove(client)
                client.close()

    def _serve(self, client: Client, op: object) -> None:
        match op:
            case "follow":
                client.follows = True
                client.tell(self._news().line())
            case "status":
                client.answer(self._news().line())
            case "target":
                client.answer(Target(self._orders.plan, self._orders.options, self._orders.api_key).line())
            case "metrics":
                client.answer(Numbers(self._metrics()).line())
            case "stop":
                self._feed(StopAsked())
            case "kill":
                self._feed(KillAsked())
            case "restart":
                self._feed(RestartAsked())
            case other:
                client.answer(protocol.refusal(other))

    def _lose_owner(self) -> None:
        """Kill the engine: its owner is gone, and nobody has asked for a drain."""
        self._loop.forget(self._lose_owner)
        if self._owner in self._clients:
            self._clients.remove(self._owner)
            self._owner.close()
        self._feed(KillAsked())

    def _notice_exit(self) -> None:
        if self._handle is None or (ended := self._runtime.poll(self._handle)) is None:
            return
        self._handle = None
        self._exits[ended.code] += 1
        if self.state.phase is Phase.STOPPING:
            self._feed(Ended())
            return
        from launcher.supervise import diagnosis  # loaded since the engine's first start

        verdict = diagnosis.explain(
            ended.code,
            diagnosis.evidence(self._log_file),
            starting=self.state.phase is Phase.STARTING,
            out_of_memory=ended.out_of_memory,
            served=self.state.served,
        )
        self._feed(
            Crashed(verdict.sentence, verdict.permanent),
            killed=-ended.code in _FROM_OUTSIDE and not ended.out_of_memory,
        )

    def _after(self, seconds: float, event: Event) -> None:
        self._loop.after(seconds, event, self._start)

    def _feed_of(self, start: int | None, event: Event) -> None:
        if start not in (None, self._start):
            return
        if isinstance(event, TimedOut):
            from launcher.supervise import diagnosis

            if cause := diagnosis.hint(diagnosis.evidence(self._log_file)):
                event = TimedOut(f"{event.reason}; {cause}")  # some engines wait for ever for a worker that has failed
        self._feed(event)

    def _feed(self, event: Event, killed: bool = False) -> None:
        before = self.state
        if isinstance(event, Crashed):
            self._killed = killed
        self.state, actions = step(before, event, self._orders.policy)
        for action in actions:
            self._perform(action)
        if self.state.phase.final and not self._left:  # before it is said: nothing is left by then
            trees.remove(Path(self._orders.plan.run_dir))
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
                self._forget_end()
                self._left = self._runtime.sweep(self._orders.plan)
                if self._memory:
                    self._left += self._memory.not_back(_MEMORY_S)
                self._handle = None
            case RestartAfter(seconds):
                self._after(seconds * random.uniform(0.8, 1.2), BackoffOver())  # noqa: S311  (jitter, not a secret)

    def _start_engine(self) -> None:
        adopted = self._orders.adopt if self._start == 0 else None
        if self._start == 0 and self._orders.device:
            self._memory = self._device_memory()
            self._orders = dataclasses.replace(self._orders, memory_before=self._memory.before)
        self._start = max(self._start, self._orders.starts) if adopted else self._start + 1
        try:
            if adopted:
                self._log_file = logs.newest(self._orders.home / "logs")
                self._runtime.adopt(adopted, self._orders.plan, self._log_file)
                self._handle = adopted
            else:
                self._log_file = logs.next_file(self._orders.home / "logs")
                kept = self._orders.dumps() if self._orders.detached else None
                self._handle = self._runtime.start(self._orders.plan, self._log_file, kept)
        except (DeploymentError, OSError) as exc:  # OSError: a disk that is full or gone, which may come back
            self._loop.post(Crashed(str(exc), permanent=not self.state.served), self._start)
            return
        if (end := self._runtime.end_of(self._handle)) is not None:
            self._loop.watch(end, self._forget_end)
        http = self._orders.plan.endpoints.http
        self._watch = Watch(
            Door(http, self._orders.api_key, self._orders.plan.key),
            self._orders.plan.probes,
            is_ours=partial(self._runtime.listens, self._handle, http.port),
            report=partial(self._loop.post, start=self._start),
            effort=Effort(partial(self._runtime.activity, self._handle), partial(logs.size, self._log_file)),
            metrics=self._orders.plan.endpoints.metrics,
        )
        import launcher.supervise.diagnosis  # noqa: F401  (the engine runs by now, and no restart shall wait for this)

    def _device_memory(self) -> DeviceMemory:
        plugin = load(self._orders.device)()
        return DeviceMemory(plugin.detect, self._orders.plan.device.ids, self._orders.memory_before)

    def _forget_end(self) -> None:
        """Stop watching for the program's end: it has come, or the descriptor is about to be closed."""
        self._loop.forget(self._forget_end)

    def _cancel_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _announce(self) -> None:
        news = self._news()
        for client in self._clients:
            if client.follows:
                client.tell(news.line())
        try:
            protocol.write_state(self._orders.home, news)
        except OSError as exc:  # a full disk must not end a healthy engine
            import logging  # not at the top: it would keep every engine waiting for 3 ms

            logging.getLogger(__name__).warning("%s: could not write its state: %s", self._orders.plan.name, exc)

    def _publish_metrics(self) -> None:
        if port := self._orders.metrics_port:
            try:
                exposition.serve(port, self._metrics)
            except OSError as exc:
                self._feed(Crashed(f"supervise.metrics_port={port} cannot be used: {exc.strerror}", permanent=True))

    def _metrics(self) -> str:
        timings = dict(self._watch.timings) if self._watch else {}
        return exposition.render(
            self._orders.plan.name, self.state.phase, self._start, self.state.crashes, timings, self._exits
        )

    def _news(self) -> News:
        return News(
            phase=self.state.phase,
            reason=self.state.reason,
            timed_out=self.state.timed_out,
            killed=self._killed,
            returns=self.state.restarting,
            crashes=self.state.crashes,
            served=self.state.served,
            starts=self._start,
            pid=self._handle.pid if self._handle else None,
            handle=protocol.handle_record(self._handle) if self._handle else None,
            supervisor=os.getpid(),
            detached=self._orders.detached,
            since=self._since,
            log=str(self._log_file),
            timings=dict(self._watch.timings) if self._watch else {},
            leftovers=self._left,
            tail=tuple(logs.tail(self._log_file)[-8:]) if self.state.phase is Phase.FAILED else (),
        )


def main() -> None:
    """Take a socket's number and the owner's pid from the command line, orders from the socket, and supervise."""
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
    first = b""
    while not first.endswith(b"\n"):  # nothing follows it before it has been answered
        received = control.recv(1 << 20)
        if not received:
            return
        first += received
    orders = Orders.loads(first)
    runtime: Runtime = load(orders.runtime)()
    if orders.detached:
        os.chdir("/")  # wherever the user stood, it may be unmounted
    Supervisor(orders, runtime, control, None if orders.detached else _watch_owner(int(sys.argv[2]))).run()


def _watch_owner(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the owner ends; None where the kernel has none (Linux < 5.3)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        sys.exit(0)
    except (OSError, AttributeError):
        return None
    if os.getppid() != pid:  # it ended before, and another has its pid
        sys.exit(0)
    return descriptor


if __name__ == "__main__":
    main()
