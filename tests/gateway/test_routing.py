"""The choice among deployments, the breaker, the rules and the queue: no network, and a clock by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.dialect import OpenAI
from launcher.config.gateway import Member, Rule
from launcher.gateway.admission import Admission, Full, Gate, Ticket
from launcher.gateway.routing import (
    FAILURES,
    OPEN_MAX_S,
    OPEN_S,
    Breaker,
    Choice,
    Replica,
    RequestShape,
    Upstream,
    fits,
    shape_of,
)
from tests.gateway.harness import route


def replicas(*names: str) -> dict[str, Replica]:
    return {name: Replica(name, Upstream("h", 1, False, "", OpenAI(None), None)) for name in names}


def choice(strategy: str, **weights: int) -> tuple[Choice, dict[str, Replica]]:
    known = replicas(*weights)
    members = [Member(name=name, weight=weight) for name, weight in weights.items()]
    return Choice(route("m", members, strategy=strategy), known), known


def picked(from_: Choice, times: int) -> list[str]:
    found = [from_.pick(None, (), 0.0) for _ in range(times)]
    return [replica.name for replica in found if replica]


def test_priority_takes_the_first_that_is_well() -> None:
    among, known = choice("priority", a=1, b=1, c=1)
    known["a"].upstream = None

    assert picked(among, 3) == ["b", "b", "b"]
    assert among.pick(None, [known["b"]], 0.0) is known["c"]
    assert among.pick(["b"], [known["b"]], 0.0) is None


def test_round_robin_goes_by_weight_and_does_not_lump() -> None:
    among, _ = choice("round_robin", a=3, b=1)

    assert picked(among, 8) == ["a", "a", "b", "a", "a", "a", "b", "a"]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_round_robin_keeps_to_the_weights_exactly(weights: list[int]) -> None:
    named = {f"r{number}": weight for number, weight in enumerate(weights)}
    among, _ = choice("round_robin", **named)

    assert Counter(picked(among, sum(weights))) == named


def test_least_busy_counts_what_is_on_its_way_for_each_weight() -> None:
    among, known = choice("least_busy", a=1, b=2)
    known["a"].in_flight, known["b"].in_flight = 1, 2

    assert picked(among, 1) == ["b"]  # 3 / 2 is less than 2 / 1
    known["b"].in_flight = 4
    assert picked(among, 1) == ["a"]


def test_those_who_are_equally_busy_take_turns() -> None:
    among, _ = choice("least_busy", a=1, b=1)

    assert picked(among, 4) == ["a", "b", "a", "b"]


def test_one_whose_supervisor_doubts_it_comes_after_those_that_are_well() -> None:
    among, known = choice("priority", a=1, b=1)
    known["a"].phase = "DEGRADED"

    assert picked(among, 2) == ["b", "b"]
    known["b"].upstream = None
    assert picked(among, 1) == ["a"]


# ----------------------------------------------------------------------------------------------------------- breaker


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_through_then() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.lets(0.0)
    breaker.failed(0.0)

    assert not breaker.lets(OPEN_S - 0.01)
    assert breaker.lets(OPEN_S)
    breaker.tried(OPEN_S)
    assert not breaker.lets(OPEN_S)  # one at a time
    breaker.succeeded()
    assert breaker.lets(OPEN_S)


def test_a_breaker_stays_open_for_longer_each_time_up_to_a_limit() -> None:
    breaker, now = Breaker(), 0.0
    waits = []
    for _ in range(FAILURES + 8):
        breaker.failed(now)
        began = now
        while not breaker.lets(now):
            now += 0.5
        waits.append(now - began)

    assert waits[: FAILURES + 2] == [0.0] * (FAILURES - 1) + [1.0, 2.0, 4.0]
    assert waits[-1] == OPEN_MAX_S


def test_a_success_in_between_forgets_failures() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(0.0)
        breaker.succeeded()

    assert breaker.lets(0.0)


def test_one_that_was_started_anew_is_not_blamed_for_its_last_life() -> None:
    replica = replicas("a")["a"]
    for _ in range(FAILURES):
        replica.breaker.failed(0.0)
    assert not replica.usable(0.0)
    assert replica.upstream is not None

    replica.point_to(dataclasses.replace(replica.upstream))  # the same, said again
    assert not replica.usable(0.0)
    replica.point_to(dataclasses.replace(replica.upstream, start=2))

    assert replica.usable(0.0)


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"messages": [{"role": "user", "content": "abc"}, {"role": "", "content": "de"}]},
            RequestShape(5, False, 1),
        ),
        ({"messages": [{"content": [{"type": "text", "text": "abc"}, {"type": "image"}]}]}, RequestShape(3, False, 1)),
        ({"messages": "nonsense", "stream": True}, RequestShape(0, True, 1)),
        ({"prompt": "abcd", "stream": True}, RequestShape(4, True, 1)),
        ({"prompt": ["ab", "cde"]}, RequestShape(5, False, 2)),
        ({"prompt": [1, 2, 3]}, RequestShape(3, False, 1)),
        ({"input": ["a"] * 7}, RequestShape(7, False, 7)),
        ({}, RequestShape(0, False, 1)),
    ],
)
def test_what_a_rule_looks_at(fields: dict[str, object], what: RequestShape) -> None:
    assert shape_of(fields) == what


@pytest.mark.parametrize(
    ("rule", "fitting"),
    [
        (Rule(use=["a"]), True),
        (Rule(min_chars=10), True),
        (Rule(min_chars=11), False),
        (Rule(max_chars=10), True),
        (Rule(max_chars=9), False),
        (Rule(stream=True), False),
        (Rule(stream=False, min_batch=2), True),
        (Rule(min_batch=3), False),
    ],
)
def test_all_that_a_rule_says_must_fit(rule: Rule, fitting: bool) -> None:
    assert fits(rule, RequestShape(10, False, 2)) is fitting


def test_the_first_rule_that_fits_decides() -> None:
    rules = [Rule(use=["b"], min_chars=100), Rule(use=["a"], stream=True)]
    among = Choice(route("m", [Member("a"), Member("b")], rules=rules), replicas("a", "b"))

    assert among.candidates({"prompt": "x" * 100, "stream": True}) == ["b"]
    assert among.candidates({"prompt": "x", "stream": True}) == ["a"]
    assert among.candidates({"prompt": "x"}) is None


# ------------------------------------------------------------------------------------------------------------- queue


class Waits(Ticket):
    def __init__(self, route: Gate, key: Gate, went: list[object], name: object = None) -> None:
        self.route_gate, self.key_gate, self.inside = route, key, False
        self._went, self._name = went, name

    def go(self) -> None:
        self._went.append(self._name)

    def give_way(self) -> None:
        self._went.append(f"sent away: {self._name}")


def test_requests_wait_for_a_place_in_their_order() -> None:
    admission, gate, went = Admission(), Gate(1), list[object]()
    tickets = [Waits(gate, Gate(), went, number) for number in range(4)]

    assert [admission.enter(ticket, 2) for ticket in tickets[:3]] == [True, False, False]
    with pytest.raises(Full):
        admission.enter(tickets[3], 2)
    admission.leave(tickets[0])
    admission.leave(tickets[0])  # again, which does nothing

    assert (went, gate.active) == ([1], 1)
    admission.leave(tickets[2])  # it waits no more
    admission.leave(tickets[1])
    assert (went, gate.active, list(admission.waiting)) == ([1], 0, [])


def test_nobody_waits_for_somebody_elses_limit() -> None:
    admission, went = Admission(), list[object]()
    busy, free = Gate(1), Gate()
    alice = Gate(1)
    first = Waits(busy, alice, went)
    assert admission.enter(first, 9)
    waits = Waits(free, alice, went, "waits")

    assert not admission.enter(waits, 9)  # her key has its one place taken, on another route
    assert admission.enter(Waits(free, Gate(), went), 9)
    admission.leave(first)

    assert went == ["waits"]


def test_keys_take_turns_however_many_wait_of_one() -> None:
    admission, route, went = Admission(), Gate(1), list[object]()
    alice, bob = Gate(), Gate()
    first = Waits(route, alice, went)
    admission.enter(first, 9)
    many = [Waits(route, alice, went, f"alice {number}") for number in range(3)]
    few = [Waits(route, bob, went, f"bob {number}") for number in range(2)]
    for ticket in (*many, *few):
        admission.enter(ticket, 9)

    for ticket in (first, many[0], few[0], many[1], few[1]):
        admission.leave(ticket)

    assert went == ["alice 0", "bob 0", "alice 1", "bob 1", "alice 2"]


def test_a_key_that_fills_the_queue_gives_way_to_others() -> None:
    admission, route, went = Admission(), Gate(1), list[object]()
    alice, bob = Gate(), Gate()
    admission.enter(Waits(route, alice, went), 4)
    for number in range(4):
        admission.enter(Waits(route, alice, went, number), 4)

    for number in range(2):
        assert not admission.enter(Waits(route, bob, went, f"bob {number}"), 4)
    for key in (bob, alice):
        with pytest.raises(Full):
            admission.enter(Waits(route, key, went), 4)

    assert went == ["sent away: 3", "sent away: 2"]


def test_one_place_in_the_queue_goes_to_whose_turn_was_longer_ago() -> None:
    admission, route, went = Admission(), Gate(1), list[object]()
    alice, bob = Gate(), Gate()
    first = Waits(route, alice, went)
    admission.enter(first, 1)
    second = Waits(route, alice, went, "alice")
    admission.enter(second, 1)
    admission.leave(first)
    admission.enter(Waits(route, alice, went, "alice again"), 1)

    assert not admission.enter(Waits(route, bob, went, "bob"), 1)
    with pytest.raises(Full):
        admission.enter(Waits(route, alice, went), 1)

    assert went == ["alice", "sent away: alice again"]
