"""Who may go on now, who waits for a place, and who is sent away: limits of routes and of keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Gate:
    """What a route or a key allows: `limit` requests at the same time, None for any number."""

    limit: int | None = None
    active: int = 0


class Ticket(ABC):
    """A request on its way through the gates of its route and of its key."""

    __slots__ = ("inside", "key_gate", "route_gate")

    route_gate: Gate
    key_gate: Gate
    inside: bool  #: it has its place

    @abstractmethod
    def go(self) -> None:
        """Its turn has come, after it had to wait."""


class Full(Exception):
    """As many wait as may."""


@dataclass(eq=False, slots=True)
class Admission:
    """First come, first served, but nobody waits for somebody else's limit."""

    waiting: deque[Ticket] = field(default_factory=deque)
    _admitting: bool = False

    def enter(self, ticket: Ticket, queue: int) -> bool:
        """Whether it may go on at once; if not it waits. Raises `Full` where `queue` wait for its route already."""
        if self._lets_in(ticket):
            return True
        if sum(other.route_gate is ticket.route_gate for other in self.waiting) >= queue:
            raise Full
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
            while ticket := next((it for it in self.waiting if self._lets_in(it)), None):
                self.waiting.remove(ticket)
                ticket.go()
        finally:
            self._admitting = False

    @staticmethod
    def _lets_in(ticket: Ticket) -> bool:
        """Whether there is room for it, which it has then."""
        route, key = ticket.route_gate, ticket.key_gate
        if (route.limit is None or route.active < route.limit) and (key.limit is None or key.active < key.limit):
            route.active += 1
            key.active += 1
            ticket.inside = True
        return ticket.inside
