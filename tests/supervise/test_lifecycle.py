"""The lifecycle as a table: what each event makes of each phase, and what is to be done."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from launcher.supervise.lifecycle import (
    Action,
    BackoffOver,
    Begin,
    Crashed,
    Ended,
    Event,
    GraceOver,
    KillAsked,
    Missed,
    Phase,
    Policy,
    Proved,
    Recovered,
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

POLICY = Policy(max_crashes=4, backoff_s=1.0, backoff_max_s=60.0)
EVENTS: tuple[Event, ...] = (
    Begin(), Proved(), Crashed("boom"), TimedOut("slow"), Missed("slow"), Recovered(), Stable(), BackoffOver(),
    StopAsked(), KillAsked(), RestartAsked(), GraceOver(), Ended(),
)  # fmt: skip

#: from a state with one crash behind it, and no service: (phase, event) → (state, actions); what is not here changes
#: nothing
ONE = State(crashes=1, reason="before")
TABLE: dict[tuple[Phase, Event], tuple[State, tuple[Action, ...]]] = {
    (Phase.PENDING, Begin()): (State(Phase.STARTING, 1, "before"), (StartEngine(),)),
    (Phase.PENDING, StopAsked()): (State(Phase.STOPPED, 1, "before"), ()),
    (Phase.STARTING, Proved()): (State(Phase.READY, 1, "before", served=True), (WatchLiveness(),)),
    (Phase.STARTING, TimedOut("slow")): (State(Phase.FAILED, 1, "slow", timed_out=True), (Sweep(),)),
    (Phase.STARTING, Crashed("boom")): (State(Phase.BACKOFF, 2, "boom"), (Sweep(), RestartAfter(1.0))),
    (Phase.STARTING, StopAsked()): (State(Phase.STOPPING, 1, "before"), (Terminate(),)),
    (Phase.STARTING, RestartAsked()): (State(Phase.STOPPING, restarting=True), (Terminate(),)),
    (Phase.READY, Missed("slow")): (State(Phase.DEGRADED, 1, "slow"), ()),
    (Phase.READY, Stable()): (State(Phase.READY, 0, "before"), ()),
    (Phase.READY, Crashed("boom")): (State(Phase.BACKOFF, 2, "boom"), (Sweep(), RestartAfter(1.0))),
    (Phase.READY, StopAsked()): (State(Phase.STOPPING, 1, "before"), (Terminate(),)),
    (Phase.READY, RestartAsked()): (State(Phase.STOPPING, restarting=True), (Terminate(),)),
    (Phase.DEGRADED, Recovered()): (State(Phase.READY, 1), ()),
    (Phase.DEGRADED, Stable()): (State(Phase.DEGRADED, 0, "before"), ()),
    (Phase.DEGRADED, Crashed("boom")): (State(Phase.BACKOFF, 2, "boom"), (Sweep(), RestartAfter(1.0))),
    (Phase.DEGRADED, StopAsked()): (State(Phase.STOPPING, 1, "before"), (Terminate(),)),
    (Phase.DEGRADED, RestartAsked()): (State(Phase.STOPPING, restarting=True), (Terminate(),)),
    (Phase.BACKOFF, BackoffOver()): (State(Phase.STARTING, 1, "before"), (StartEngine(),)),
    (Phase.BACKOFF, StopAsked()): (State(Phase.STOPPED, 1, "before"), ()),
    (Phase.BACKOFF, RestartAsked()): (State(Phase.STARTING), (StartEngine(),)),
    (Phase.PENDING, KillAsked()): (State(Phase.STOPPED, 1, "before"), ()),
    (Phase.STARTING, KillAsked()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.READY, KillAsked()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.DEGRADED, KillAsked()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.BACKOFF, KillAsked()): (State(Phase.STOPPED, 1, "before"), ()),
    (Phase.STOPPING, KillAsked()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.STOPPING, GraceOver()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.STOPPING, Ended()): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
    (Phase.STOPPING, Crashed("boom")): (State(Phase.STOPPED, 1, "before"), (Sweep(),)),
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)), ids=str)
def test_every_event_in_every_phase(phase: Phase, event: Event) -> None:
    state = State(phase, ONE.crashes, ONE.reason)

    assert step(state, event, POLICY) == TABLE.get((phase, event), (state, ()))


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)), ids=str)
def test_one_that_has_served_is_as_any_other_and_that_is_not_forgotten(phase: Phase, event: Event) -> None:
    state = State(phase, ONE.crashes, ONE.reason, served=True)
    after, actions = TABLE.get((phase, event), (state, ()))
    if (phase, event) == (Phase.STARTING, TimedOut("slow")):  # a crash like others
        after, actions = State(Phase.BACKOFF, 2, "slow"), (Sweep(), RestartAfter(1.0))

    assert step(state, event, POLICY) == (dataclasses.replace(after, served=True), actions)


def test_a_verdict_is_final() -> None:
    finals = [phase for phase in Phase if phase.final]

    assert finals == [Phase.STOPPED, Phase.FAILED]
    assert all(step(State(phase), event, POLICY) == (State(phase), ()) for phase in finals for event in EVENTS)


def test_a_stop_in_a_restart_is_a_stop_and_a_kill_is_a_kill() -> None:
    restarting = State(Phase.STOPPING, restarting=True)

    assert step(restarting, StopAsked(), POLICY) == (State(Phase.STOPPING), ())
    assert step(restarting, KillAsked(), POLICY) == (State(Phase.STOPPED), (Sweep(),))


def test_the_first_restart_is_immediate_and_after_the_sweep() -> None:
    assert step(State(Phase.READY), Crashed("boom"), POLICY) == (
        State(Phase.STARTING, 1, "boom"),
        (Sweep(), StartEngine()),
    )


def crash(policy: Policy, most: int = 100, *, served: bool = False) -> tuple[list[float], State]:
    """The waits before the restarts, the immediate one as 0, and what it is after `most` crashes, or the verdict."""
    state, waits = State(Phase.STARTING, served=served), []
    for _ in range(most):
        state, actions = step(state, Crashed("boom"), policy)
        waits += [action.seconds for action in actions if isinstance(action, RestartAfter)]
        waits += [0.0 for action in actions if isinstance(action, StartEngine)]
        if state.phase is Phase.BACKOFF:
            state, _ = step(state, BackoffOver(), policy)
        if state.phase.final:
            break
    return waits, state


def test_waits_double_up_to_the_cap() -> None:
    waits, _ = crash(Policy(max_crashes=8, backoff_s=0.5, backoff_max_s=6.0))

    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


@pytest.mark.parametrize(("max_crashes", "restarts"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 4)])
def test_crash_number_max_crashes_is_the_verdict(max_crashes: int, restarts: int) -> None:
    waits, verdict = crash(Policy(max_crashes, 1.0, 60.0))

    assert len(waits) == restarts
    assert verdict == State(Phase.FAILED, max(1, max_crashes), "boom")


@pytest.mark.parametrize("max_crashes", [1, 3])
def test_one_that_has_served_is_started_again_after_as_many_crashes_as_there_are(max_crashes: int) -> None:
    waits, state = crash(Policy(max_crashes, 1.0, 60.0), most=1000, served=True)

    assert waits[:9] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert (len(waits), state.crashes) == (1000, 1000)


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.DEGRADED])
def test_a_crash_that_a_restart_cannot_mend_is_the_verdict_at_once(phase: Phase, served: bool) -> None:
    assert step(State(phase, served=served), Crashed("no such file", permanent=True), POLICY) == (
        State(Phase.FAILED, 1, "no such file", served=served),
        (Sweep(),),
    )


def test_serving_for_long_forgets_earlier_crashes() -> None:
    crashed = State(Phase.READY, crashes=3, reason="boom", served=True)
    stable, _ = step(crashed, Stable(), POLICY)

    assert step(crashed, Crashed("again"), POLICY)[1] == (Sweep(), RestartAfter(4.0))
    assert step(stable, Crashed("again"), POLICY) == (
        State(Phase.STARTING, 1, "again", served=True),
        (Sweep(), StartEngine()),
    )


def test_becoming_ready_alone_does_not_forget_crashes() -> None:
    assert step(State(Phase.STARTING, 2, "boom"), Proved(), POLICY)[0] == State(Phase.READY, 2, "boom", served=True)


def test_crash_two_thousand_is_like_any_other() -> None:
    assert step(State(Phase.READY, crashes=2000), Crashed("boom"), Policy(10**6, 1.0, 60.0)) == (
        State(Phase.BACKOFF, 2001, "boom"),
        (Sweep(), RestartAfter(60.0)),
    )


def test_running_says_whether_the_program_is_there() -> None:
    assert [phase for phase in Phase if phase.running] == [Phase.STARTING, Phase.READY, Phase.DEGRADED]
