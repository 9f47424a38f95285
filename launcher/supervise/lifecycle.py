"""The lifecycle of one deployment as a pure decision: `step(state, event) -> (state, actions)`.

The supervisor owns the state, feeds events in and performs the actions, in their order; nothing here touches the
machine.

    PENDING → STARTING → READY ⇄ DEGRADED
                 ↑  ↘      ↓ crash
                 └── BACKOFF          before it has served, crash number `max_crashes`, or one too late → FAILED
                                      at any time, a crash that a restart cannot mend → FAILED
    any of these, when asked to stop → STOPPING → STOPPED; when asked to restart → STOPPING → STARTING; when asked to
    kill → STOPPED
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Phase(str, Enum):
    """The states of a deployment, as `ps` shows them."""

    PENDING = "PENDING"
    PREPARING = "PREPARING"
    STARTING = "STARTING"
    READY = "READY"
    DEGRADED = "DEGRADED"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"  #: no decision leads here: a command shows it where a supervisor cannot be understood

    @property
    def final(self) -> bool:
        """Whether the deployment has ended: nothing leads out of this state."""
        return self in (Phase.STOPPED, Phase.FAILED)

    @property
    def running(self) -> bool:
        """Whether the engine's program is there."""
        return self in (Phase.STARTING, Phase.READY, Phase.DEGRADED)


@dataclass(frozen=True, slots=True)
class State:
    """All that `step` decides by. `crashes` counts those in a row."""

    phase: Phase = Phase.PENDING
    crashes: int = 0  #: in a row
    reason: str = ""  #: of the last crash, or of the verdict
    timed_out: bool = False  #: the verdict is that it never became ready, not that it ended
    restarting: bool = False  #: it is being stopped to be started again
    served: bool = False  #: it has proved itself at least once: what it is asked to serve can be served here


@dataclass(frozen=True, slots=True)
class Policy:
    """When to give up, and how long to wait before each new start. Times are in seconds."""

    max_crashes: int  #: in a row, before it has served; afterwards it is started again and again
    backoff_s: float
    backoff_max_s: float


class _Plain:
    """An event or an action that says nothing but its name. A dataclass takes a supervisor's start 0.3 ms to make."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


# ------------------------------------------------------------------------------------------------------------ events


class Begin(_Plain):
    """Everything is prepared."""


class Proved(_Plain):
    """The server said that it is ready and answered a real request."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The program ended unasked, or stopped making progress; `permanent` where starting it again cannot help."""

    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The program runs, but did not prove itself within `startup_timeout_s`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Missed:
    """A liveness check failed, but not yet often enough."""

    reason: str


class Recovered(_Plain):
    """A liveness check passed after one that failed."""


class Stable(_Plain):
    """The engine has served for `stable_s`."""


class BackoffOver(_Plain):
    """The wait that `RestartAfter` asked for is over."""


class StopAsked(_Plain):
    """Drain and stop. Whoever asks again, or asks too, changes nothing."""


class KillAsked(_Plain):
    """Stop without a drain, and without the rest of one that has begun."""


class RestartAsked(_Plain):
    """Drain, stop and start again. It says nothing against the engine: crashes are forgotten."""


class GraceOver(_Plain):
    """`stop_grace_s` have passed since TERM."""


class Ended(_Plain):
    """The program ended while it was being stopped."""


Event = (
    Begin | Proved | Crashed | TimedOut | Missed | Recovered | Stable | BackoffOver | StopAsked | KillAsked
    | RestartAsked | GraceOver | Ended
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------------- actions


class StartEngine(_Plain):
    """Start the engine's program, or adopt it where it is there, and begin to probe it."""


class WatchLiveness(_Plain):
    """Begin to check liveness, and report `Stable` in time."""


class Terminate(_Plain):
    """TERM to the engine's group; report `GraceOver` in time."""


class Sweep(_Plain):
    """KILL whatever is left of the engine and wait until it is gone; remove what it left behind."""


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Wait that long, more or less; then report `BackoffOver`."""

    seconds: float


Action = StartEngine | WatchLiveness | Terminate | Sweep | RestartAfter


def step(state: State, event: Event, policy: Policy) -> tuple[State, tuple[Action, ...]]:
    """Return the state after `event`, and the actions to take. An event that no longer matters changes nothing."""
    match state.phase, event:
        case Phase.PENDING, Begin():
            return replace(state, phase=Phase.STARTING), (StartEngine(),)
        case Phase.STARTING, Proved():
            return replace(state, phase=Phase.READY, served=True), (WatchLiveness(),)
        case Phase.STARTING, TimedOut(reason) if not state.served:
            return State(Phase.FAILED, state.crashes, reason, timed_out=True), (Sweep(),)
        case Phase.STARTING, TimedOut(reason):
            return _after_crash(replace(state, crashes=state.crashes + 1, reason=reason), False, policy)
        case Phase.READY, Missed(reason):
            return replace(state, phase=Phase.DEGRADED, reason=reason), ()
        case Phase.DEGRADED, Recovered():
            return replace(state, phase=Phase.READY, reason=""), ()
        case ((Phase.READY | Phase.DEGRADED), Stable()):
            return replace(state, crashes=0), ()
        case ((Phase.STARTING | Phase.READY | Phase.DEGRADED), Crashed(reason, permanent)):
            return _after_crash(replace(state, crashes=state.crashes + 1, reason=reason), permanent, policy)
        case ((Phase.STARTING | Phase.READY | Phase.DEGRADED), RestartAsked()):
            return State(Phase.STOPPING, restarting=True, served=state.served), (Terminate(),)
        case Phase.BACKOFF, RestartAsked():
            return State(Phase.STARTING, served=state.served), (StartEngine(),)
        case Phase.STOPPING, StopAsked() if state.restarting:
            return replace(state, restarting=False), ()
        case Phase.STOPPING, GraceOver() | Ended() | Crashed() if state.restarting:
            return State(Phase.STARTING, served=state.served), (Sweep(), StartEngine())
        case Phase.BACKOFF, BackoffOver():
            return replace(state, phase=Phase.STARTING), (StartEngine(),)
        case ((Phase.STARTING | Phase.READY | Phase.DEGRADED), StopAsked()):
            return replace(state, phase=Phase.STOPPING), (Terminate(),)
        case ((Phase.PENDING | Phase.BACKOFF), StopAsked() | KillAsked()):
            return replace(state, phase=Phase.STOPPED), ()
        case ((Phase.STARTING | Phase.READY | Phase.DEGRADED | Phase.STOPPING), KillAsked()):
            return replace(state, phase=Phase.STOPPED, restarting=False), (Sweep(),)
        case Phase.STOPPING, GraceOver() | Ended() | Crashed():
            return replace(state, phase=Phase.STOPPED), (Sweep(),)
        case _:
            return state, ()


def _after_crash(state: State, permanent: bool, policy: Policy) -> tuple[State, tuple[Action, ...]]:
    # One that has served is never given up: a few bad requests in a row must not end a service for good.
    if permanent or (state.crashes >= policy.max_crashes and not state.served):
        return replace(state, phase=Phase.FAILED), (Sweep(),)
    if state.crashes == 1:
        return replace(state, phase=Phase.STARTING), (Sweep(), StartEngine())
    doublings = min(state.crashes - 2, 62)  # the longest wait was reached long before, and floats end
    wait = min(policy.backoff_s * 2.0**doublings, policy.backoff_max_s)
    return replace(state, phase=Phase.BACKOFF), (Sweep(), RestartAfter(wait))
