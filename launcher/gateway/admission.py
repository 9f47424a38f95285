"""Who may go on now, who waits for a place, and who is sent away: limits of routes and of keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Gate:
    """What a route or a key allows: `limit` requests at the same time, None for any number."""

    limit: int | None = None
    active: int = 0
    turn: int = 0  #: of a key: the number of the last turn that it had, of all that are given to those who wait


class Ticket(ABC):
    """A request on its way through the gates of its route and of its key."""

    __slots__ = ("inside", "key_gate", "route_gate")

    route_gate: Gate
    key_gate: Gate
    inside: bool  #: it has its place

    @abstractmethod
    def go(self) -> None:
        """Its turn has come, after it had to wait. Whatever goes wrong is its own: this raises nothing."""

    @abstractmethod
    def give_way(self) -> None:
        """Its place in the queue goes to somebody whose key has fewer there."""


class Full(Exception):
    """The route's queue has no room for this key."""


@dataclass(eq=False, slots=True)
class Admission:
    """Keys take turns, and each has its own requests served in their order; nobody waits for somebody else's limit."""

    waiting: list[Ticket] = field(default_factory=list)
    _admitting: bool = False
    _turn: int = 0

    def enter(self, ticket: Ticket, queue: int) -> bool:
        """Whether it may go on at once; if not it waits. Raises `Full` where `queue` wait for its route already, and no
        other key has more of these than its own."""
        if self._lets_in(ticket):
            return True
        of_route = [other for other in self.waiting if other.route_gate is ticket.route_gate]
        if len(of_route) >= queue:
            self._make_room(ticket, of_route)
        self.waiting.append(ticket)
        return False

    def leave(self, ticket: Ticket) -> None:
        """It has ended, or waits no more. Calling it again does nothing."""
        if ticket.inside:
            ticket.inside = False
            ticket.route_gate.active -= 1
            ticket.key_gate.active -= 1
            if self.waiting:
                self.admit()
        elif self.waiting and ticket in self.waiting:
            self.waiting.remove(ticket)

    def admit(self) -> None:
        """Let in whoever has room now. Whoever goes may end at once, and make room: that is seen in the next round, and
        not in a deeper call, since many may wait."""
        if self._admitting:
            return
        self._admitting = True
        try:
            while ticket := self._next():
                self.waiting.remove(ticket)
                self._turn = ticket.key_gate.turn = self._turn + 1
                ticket.go()
        finally:
            self._admitting = False

    def _next(self) -> Ticket | None:
        """Return whose turn it is, and give it its place: where there is room, the first of the key that had its
        last turn longest ago."""
        in_turn = sorted(self.waiting, key=lambda it: it.key_gate.turn)
        return next((ticket for ticket in in_turn if self._lets_in(ticket)), None)

    def _make_room(self, ticket: Ticket, of_route: Sequence[Ticket]) -> None:
        """Send away the newest of the key that has most in the queue: two more than this one's, or one more and a later
        turn. Raises `Full` where there is none."""
        counts = Counter(other.key_gate for other in of_route)
        own = counts[ticket.key_gate]
        key, most = max(counts.items(), key=lambda item: item[1], default=(ticket.key_gate, 0))
        if most <= own or (most == own + 1 and key.turn <= ticket.key_gate.turn):
            raise Full
        newest = next(other for other in reversed(of_route) if other.key_gate is key)
        self.waiting.remove(newest)
        newest.give_way()

    @staticmethod
    def _lets_in(ticket: Ticket) -> bool:
        """Whether there is room for it, which it has then."""
        route, key = ticket.route_gate, ticket.key_gate
        if (route.limit is None or route.active < route.limit) and (key.limit is None or key.active < key.limit):
            route.active += 1
            key.active += 1
            ticket.inside = True
        return ticket.inside
