"""The limits of routes and of keys: requests go on now, wait for a place, or are sent away."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Gate:
    """A limit of a route or a key: `limit` requests at the same time, None for any number."""

    limit: int | None = None
    active: int = 0
    turn: int = 0  #: the number of a key's last turn, of all turns that were given to requests that waited


class Ticket(ABC):
    """A request on its way through the gates of its route and of its key."""

    __slots__ = ("inside", "key_gate", "route_gate")

    route_gate: Gate
    key_gate: Gate
    inside: bool  #: the request has its place

    @abstractmethod
    def go(self) -> None:
        """Go on: its turn has come, after it had to wait. Raises nothing: what goes wrong is its own matter."""

    @abstractmethod
    def give_way(self) -> None:
        """Leave the queue: the place goes to a request whose key has fewer there."""


class Full(Exception):
    """The route's queue has no room for this key."""


@dataclass(eq=False, slots=True)
class Admission:
    """The queue in front of all gates.

    Keys take turns, and each has its own requests served in their order; nobody waits for somebody else's limit.
    """

    waiting: list[Ticket] = field(default_factory=list)
    _admitting: bool = False
    _turn: int = 0

    def enter(self, ticket: Ticket, queue: int) -> bool:
        """Return whether the ticket may go on at once; if not it waits.

        Raises `Full` where `queue` tickets wait for its route already, and no other key has more of these than its own.
        """
        if self._lets_in(ticket):
            return True
        of_route = [other for other in self.waiting if other.route_gate is ticket.route_gate]
        if len(of_route) >= queue:
            self._make_room(ticket, of_route)
        self.waiting.append(ticket)
        return False

    def leave(self, ticket: Ticket) -> None:
        """Give up the place of a ticket that has ended, or that waits no more. A second call does nothing."""
        if ticket.inside:
            ticket.inside = False
            ticket.route_gate.active -= 1
            ticket.key_gate.active -= 1
            if self.waiting:
                self.admit()
        elif self.waiting and ticket in self.waiting:
            self.waiting.remove(ticket)

    def admit(self) -> None:
        """Let in every ticket that has room now.

        One that goes may end at once, and make room: that is seen in the next round, and not in a deeper call, since
        many may wait.
        """
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
        """Return the ticket whose turn it is, which has its place then; None where no ticket has room.

        It is the first of the key that had its last turn longest ago.
        """
        in_turn = sorted(self.waiting, key=lambda it: it.key_gate.turn)
        return next((ticket for ticket in in_turn if self._lets_in(ticket)), None)

    def _make_room(self, ticket: Ticket, of_route: Sequence[Ticket]) -> None:
        """Send away the newest ticket of the key that has most in the queue.

        That key has two more than this ticket's, or one more and a later turn. Raises `Full` where there is none.
        """
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
        """Return whether the ticket has room, and take its place then."""
        route, key = ticket.route_gate, ticket.key_gate
        if (route.limit is None or route.active < route.limit) and (key.limit is None or key.active < key.limit):
            route.active += 1
            key.active += 1
            ticket.inside = True
        return ticket.inside
