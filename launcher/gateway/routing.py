"""The choice of the deployment that answers, and what is known of each. No I/O, and the clock is handed in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engines.dialect import Dialect
from launcher.config.gateway import Rule
from launcher.gateway.settings import Route
from launcher.supervise.lifecycle import Phase

#: failures in a row that open a breaker; seconds that it stays open the first time, and at most
FAILURES = 3
OPEN_S = 1.0
OPEN_MAX_S = 30.0

#: the phase of a deployment that has failed its probe, but not often enough to be started again
_DOUBTED = Phase.DEGRADED.value


@dataclass(frozen=True, slots=True)
class Upstream:
    """The address of a deployment, and how it is spoken to."""

    host: str
    port: int
    tls: bool
    path: str  #: the prefix of every path of its API
    dialect: Dialect = field(compare=False)
    model: str | None  #: the name of its model, in its own words and in its answers; None where nobody knows
    api_key: str | None = None
    heads: dict[str, bytes] = field(default_factory=dict, compare=False)  #: heads of requests by path, made once each
    #: which start of a local engine this is: connections to an earlier one are of no use; 0 for any other server
    start: int = 0
    task: str | None = None  #: its model's task; None where nobody knows

    def head(self, path: str) -> bytes:
        """Return the head of a request to `path` of its API, but for the length and the end."""
        made = self.heads.get(path)
        if made is None:
            key = f"authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
            text = (
                f"POST {self.path}{path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
                f"content-type: application/json\r\n{key}"
            )
            made = self.heads[path] = text.encode("latin-1")
        return made


class Breaker:
    """Keeps requests from a replica that fails.

    `FAILURES` in a row open it, for longer each time; then one request is let through, and its outcome decides.
    """

    __slots__ = ("_open_s", "_open_until", "failures")

    def __init__(self) -> None:
        self.failures = 0  #: failures in a row, since the replica answered last
        self._open_s = OPEN_S
        self._open_until = 0.0

    def lets(self, now: float) -> bool:
        """Return whether a request may go to the replica."""
        return self.failures < FAILURES or now >= self._open_until

    def tried(self, now: float) -> None:
        """Note that a request is on its way: until its outcome is known, no other is let through an open breaker."""
        if self.failures >= FAILURES:
            self._open_until = now + self._open_s

    def succeeded(self) -> None:
        """Close: the replica has answered."""
        self.failures, self._open_s = 0, OPEN_S

    def failed(self, now: float) -> None:
        """Count a failure, and open where there were too many."""
        self.failures += 1
        if self.failures >= FAILURES:
            self._open_until = now + self._open_s
            self._open_s = min(self._open_s * 2, OPEN_MAX_S)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one start of a local engine."""

    start: int
    cause: str  #: why it ended, in one sentence; empty where it was asked to end, or somebody else has killed it


class Idle(Protocol):
    """A connection to a replica that nobody uses."""

    def close(self) -> None:
        """Close it at once."""


@dataclass(eq=False, slots=True)
class Replica:
    """One deployment or remote server, whichever routes it stands behind."""

    name: str
    upstream: Upstream | None = None  #: None while nothing serves
    phase: str = ""  #: a local deployment's phase, as its supervisor said last; empty for any other
    on_its_way: bool = False  #: it will serve soon, or fail
    lost_until: float = 0.0  #: until then its supervisor is expected to say why nobody listens where its engine was
    ending: Ending | None = None  #: how its engine's last start ended; None where none has
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0  #: requests that it works on
    used: float = 0.0  #: when its last request ended
    idle: list[Idle] = field(default_factory=list)
    requests: int = 0  #: requests that it was sent
    failures: int = 0  #: requests that it has failed
    header: bytes = b""  #: the line of a header that tells a client who has answered

    def __post_init__(self) -> None:
        """Make the header."""
        self.header = b"x-rmlaunch-deployment: %b\r\n" % self.name.encode("latin-1", "replace")

    def point_to(self, upstream: Upstream | None) -> None:
        """Reach it at `upstream` from now on; None for nowhere. What failed elsewhere says nothing about this one."""
        if upstream != self.upstream:
            self.upstream = upstream
            self.breaker = Breaker()
            self.lost_until = 0.0

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        for connection in self.idle:
            connection.close()
        self.idle.clear()

    def usable(self, now: float) -> bool:
        """Return whether a request may be sent to it."""
        if self.upstream is None or self.lost_until > now:
            return False
        return not self.breaker.failures or self.breaker.lets(now)

    def comes(self, now: float) -> bool:
        """Return whether it will serve soon, as far as anybody knows."""
        return self.on_its_way or now < self.lost_until

    def why_not(self, now: float) -> str:
        """Return why no request is sent to it; empty where one is."""
        if self.upstream is None:
            return f"{self.name} is {self.phase}" if self.phase else f"there is no deployment {self.name!r}"
        if now < self.lost_until:
            return f"{self.name} has just ended"
        return "" if self.breaker.lets(now) else f"{self.name} fails, and is left alone for a moment"


@dataclass(frozen=True, slots=True)
class RequestShape:
    """The size and kind of a request, which a route's rules look at."""

    chars: int  #: characters of all its texts
    stream: bool
    batch: int  #: texts in it


def shape_of(fields: Mapping[str, Any]) -> RequestShape:
    """Return the shape of a request with these fields.

    Texts are counted in characters, since tokens are each model's own.
    """
    if "messages" in fields:
        messages = fields["messages"] if isinstance(fields["messages"], list) else []
        return RequestShape(sum(map(_message_chars, messages)), fields.get("stream") is True, 1)
    given = fields.get("input", fields.get("prompt", ""))
    texts = given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    return RequestShape(sum(map(_chars, texts)), fields.get("stream") is True, len(texts))


def _message_chars(message: object) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list):
        return sum(_chars(part.get("text")) for part in content if isinstance(part, Mapping))
    return _chars(content)


def _chars(text: object) -> int:
    """Return how many characters `text` has; a list of tokens counts as one each."""
    return len(text) if isinstance(text, (str, list)) else 0


def fits(rule: Rule, shape: RequestShape) -> bool:
    """Return whether a request of this shape fits all that `rule` says."""
    return (
        (rule.min_chars is None or shape.chars >= rule.min_chars)
        and (rule.max_chars is None or shape.chars <= rule.max_chars)
        and (rule.stream is None or shape.stream == rule.stream)
        and (rule.min_batch is None or shape.batch >= rule.min_batch)
    )


@dataclass(eq=False, slots=True)
class _Seat:
    """A replica's place in one route."""

    replica: Replica
    weight: int
    credit: int = 0


class Choice:
    """The replicas of one route, and whose turn it is."""

    __slots__ = ("_route", "_seats", "replicas")

    def __init__(self, route: Route, replicas: Mapping[str, Replica]) -> None:
        self._route = route
        self._seats = [_Seat(replicas[member.name], member.weight) for member in route.members]
        self.replicas = [seat.replica for seat in self._seats]

    def candidates(self, fields: Mapping[str, Any]) -> Collection[str] | None:
        """Return the names of the replicas that the route's rules leave; None where all may answer."""
        if self._route.rules:
            shape = shape_of(fields)
            for rule in self._route.rules:
                if fits(rule, shape):
                    return rule.use
        return None

    def pick(self, among: Collection[str] | None, tried: Collection[Replica], now: float) -> Replica | None:
        """Return the replica whose turn it is, of those that are usable and not `tried`; None where there is none."""
        usable: list[_Seat] = []
        doubted: list[_Seat] = []
        for seat in self._seats:
            replica = seat.replica
            if replica.usable(now) and replica not in tried and (among is None or replica.name in among):
                (doubted if replica.phase == _DOUBTED else usable).append(seat)
        usable = usable or doubted
        if len(usable) < 2:
            return usable[0].replica if usable else None
        match self._route.strategy:
            case "priority":
                return usable[0].replica
            case "round_robin":
                return _in_turn(usable)
            case _:
                least = min((seat.replica.in_flight + 1) / seat.weight for seat in usable)
                return _in_turn([seat for seat in usable if (seat.replica.in_flight + 1) / seat.weight <= least])


def _in_turn(seats: Sequence[_Seat]) -> Replica:
    """Return the next in smooth weighted round robin: each gains its weight, and the chosen one pays for all."""
    chosen, total = seats[0], 0
    for seat in seats:
        total += seat.weight
        seat.credit += seat.weight
        if seat.credit > chosen.credit:
            chosen = seat
    chosen.credit -= total
    return chosen.replica
