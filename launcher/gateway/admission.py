"""Who may go on now, who waits for a place, and who is sent away: limits of routes and of keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Gate:
    """What a route or a key allows: `limit` requests at the same time, None for any number."""

    limit: int | None = None
    active: int = 0

    def has_room(self) -> bool:
        return self.limit is None or self.active < self.limit


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way through the gates of its route and of its key."""

    route: Gate
    key: Gate
    go: Callable[[], None]  #: called once, when a waiting one's turn has come
    inside: bool = False


class Full(Exception):
    """As many wait as may."""


@dataclass(eq=False, slots=True)
class Admission:
    """First come, first served, but nobody waits for somebody else's limit."""

    waiting: deque[Ticket] = field(default_factory=deque)

    def enter(self, ticket: Ticket, queue: int) -> bool:
        """Whether it may go on at once; if not it waits. Raises `Full` where `queue` wait for its route already."""
        if ticket.route.has_room() and ticket.key.has_room():
            self._let_in(ticket)
            return True
        if sum(other.route is ticket.route for other in self.waiting) >= queue:
            raise Full
        self.waiting.append(ticket)
        return False

    def leave(self, ticket: Ticket) -> None:
        """It has ended, or waits no more. Calling it again does nothing."""
        if ticket.inside:
            ticket.inside = False
            ticket.route.active -= 1
            ticket.key.active -= 1
            if self.waiting:
                self.admit()
        elif self.waiting and ticket in self.waiting:
            self.waiting.remove(ticket)

    def admit(self) -> None:
        """Let in whoever has room now."""
        ready = []
        for ticket in self.waiting:
            if ticket.route.has_room() and ticket.key.has_room():
                self._let_in(ticket)
                ready.append(ticket)
        for ticket in ready:
            self.waiting.remove(ticket)
        for ticket in ready:  # last: what it does may end others
            ticket.go()

    def _let_in(self, ticket: Ticket) -> None:
        ticket.inside = True
        ticket.route.active += 1
        ticket.key.active += 1
