"""No order of events leads to a process without an owner, a start after a stop, or a wait without an end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from launcher.supervise.lifecycle import (
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
    step,
)

EVENTS = st.one_of(
    st.sampled_from([Begin(), Proved(), Recovered(), Stable(), BackoffOver(), GraceOver(), Ended(), RestartAsked()]),
    st.builds(Crashed, st.just("it crashed"), st.booleans()),
    st.just(TimedOut("too late")),
    st.just(Missed("no answer")),
)


class Lifecycle(RuleBasedStateMachine):
    """A supervisor that does what it is told, and in which any event may come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.policy = Policy(max_crashes=3, backoff_s=1, backoff_max_s=8)
        self.program = False  #: runs, or may have left something
        self.stopping = False
        self.deadline = True  #: of the wait that the state is
        self.permanent = False  #: a crash was one that a restart cannot mend

    @rule(event=EVENTS)
    def happens(self, event: Event) -> None:
        before = self.state.phase
        self.permanent = self.permanent or (isinstance(event, Crashed) and event.permanent)
        self.state, actions = step(self.state, event, self.policy)
        for action in actions:
            match action:
                case StartEngine():
                    assert not self.program, "a second program beside the first"
                    assert not self.stopping, "a start after a stop was asked for"
                    self.program = True
                case Sweep():
                    self.program = False
        if self.state.phase is not before:
            if self.state.phase is Phase.STOPPING:
                self.deadline = Terminate() in actions
            elif self.state.phase is Phase.BACKOFF:
                self.deadline = any(isinstance(action, RestartAfter) and 0 < action.seconds <= 8 for action in actions)

    @rule()
    def stop(self) -> None:
        self.happens(StopAsked())
        self.stopping = True

    @invariant()
    def what_has_ended_has_no_program(self) -> None:
        assert not (self.state.phase.final and self.program)

    @invariant()
    def what_should_run_does(self) -> None:
        assert self.program == (self.state.phase.running or self.state.phase is Phase.STOPPING)

    @invariant()
    def every_wait_ends(self) -> None:
        assert self.deadline

    @invariant()
    def crashes_are_counted_up_to_the_verdict(self) -> None:
        assert self.state.served or self.state.crashes <= self.policy.max_crashes

    @invariant()
    def one_that_has_served_fails_of_what_a_restart_cannot_mend_alone(self) -> None:
        assert not (self.state.served and self.state.phase is Phase.FAILED) or self.permanent

    @rule()
    def kill(self) -> None:
        self.happens(KillAsked())
        self.stopping = True

    @invariant()
    def a_second_stop_changes_nothing(self) -> None:
        once, _ = step(self.state, StopAsked(), self.policy)
        if once.phase is not Phase.STOPPING or not once.restarting:
            assert step(once, StopAsked(), self.policy) == (once, ())

    @invariant()
    def a_kill_ends_it_at_once(self) -> None:
        assert step(self.state, KillAsked(), self.policy)[0].phase.final


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=300, stateful_step_count=30, deadline=None, derandomize=True)
