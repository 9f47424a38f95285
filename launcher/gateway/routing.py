"""Which deployment answers: what is known of each, and the choice among them. No I/O, and the clock is handed in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engines.dialect import Dialect
from launcher.config.gateway import Rule
from launcher.gateway.settings import Route
from launcher.supervise.lifecycle import Phase

#: failures in a row that open a breaker, how long it stays open first, and at most
FAILURES = 3
OPEN_S = 1.0
OPEN_MAX_S = 30.0

#: the phase of a deployment that has failed its probe, but not often enough to be started again
_DOUBTED = Phase.DEGRADED.value


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a deployment is reached, and how it is spoken to."""

    host: str
    port: int
    tls: bool
    path: str  #: in front of every path of its API
    dialect: Dialect = field(compare=False)
    model: str | None  #: what it calls its model, and so do its answers; None where nobody knows
    api_key: str | None = None
    heads: dict[str, bytes] = field(default_factory=dict, compare=False)  #: by path, made once each
    #: which start of a local engine this is: connections to an earlier one are of no use; 0 for any other server
    start: int = 0
    task: str | None = None  #: of its model; None where nobody knows

    def head(self, path: str) -> bytes:
        """Of a request to `path` of its API, but for its length and its end."""
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
    """Keeps requests from a replica that fails: `FAILURES` in a row open it, for longer each time; then one is let
    through, and tells."""

    __slots__ = ("_open_s", "_open_until", "failures")

    def __init__(self) -> None:
        self.failures = 0  #: in a row, since it answered last
        self._open_s = OPEN_S
        self._open_until = 0.0

    def lets(self, now: float) -> bool:
        return self.failures < FAILURES or now >= self._open_until

    def tried(self, now: float) -> None:
        """A request is on its way: until it has told, no other is let through an open breaker."""
        if self.failures >= FAILURES:
            self._open_until = now + self._open_s

    def succeeded(self) -> None:
        self.failures, self._open_s = 0, OPEN_S

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.failures >= FAILURES:
            self._open_until = now + self._open_s
            self._open_s = min(self._open_s * 2, OPEN_MAX_S)


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one start of a local engine."""

    start: int
    cause: str  #: in one sentence; empty where it was asked to end, or somebody else has killed it


class Idle(Protocol):
    """A connection to a replica that nobody uses."""

    def close(self) -> None:
        """Close it at once."""


@dataclass(eq=False, slots=True)
class Replica:
    """One deployment or remote server, whichever routes it stands behind."""

    name: str
    upstream: Upstream | None = None  #: None where nothing serves
    phase: str = ""  #: of a local deployment, as its supervisor said last
    on_its_way: bool = False  #: it will serve soon, or fail
    lost_until: float = 0.0  #: nobody listens where its engine was: until then its supervisor is expected to say more
    ending: Ending | None = None  #: of the last start that it had
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    used: float = 0.0  #: when it was asked last
    idle: list[Idle] = field(default_factory=list)
    requests: int = 0
    failures: int = 0
    header: bytes = b""  #: that tells a client who has answered

    def __post_init__(self) -> None:
        self.header = b"x-rmlaunch-deployment: %b\r\n" % self.name.encode("latin-1", "replace")

    def point_to(self, upstream: Upstream | None) -> None:
        """It is reached there from now on; what failed elsewhere says nothing about it."""
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
        if self.upstream is None or self.lost_until > now:
            return False
        return not self.breaker.failures or self.breaker.lets(now)

    def comes(self, now: float) -> bool:
        """Whether it will serve soon, as far as anybody knows."""
        return self.on_its_way or now < self.lost_until

    def why_not(self, now: float) -> str:
        """Why nothing is sent to it; empty where it is."""
        if self.upstream is None:
            return f"{self.name} is {self.phase}" if self.phase else f"there is no deployment {self.name!r}"
        if now < self.lost_until:
            return f"{self.name} has just ended"
        return "" if self.breaker.lets(now) else f"{self.name} fails, and is left alone for a moment"


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What a rule looks at."""

    chars: int
    stream: bool
    batch: int


def shape_of(fields: Mapping[str, Any]) -> RequestShape:
    """Of a request's body: texts are counted in characters, since tokens are each model's own."""
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
    """Of a list of tokens, as many as there are tokens."""
    return len(text) if isinstance(text, (str, list)) else 0


def fits(rule: Rule, shape: RequestShape) -> bool:
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
        """The names that the route's rules leave; None where all may answer."""
        if self._route.rules:
            shape = shape_of(fields)
            for rule in self._route.rules:
                if fits(rule, shape):
                    return rule.use
        return None

    def pick(self, among: Collection[str] | None, tried: Collection[Replica], now: float) -> Replica | None:
        """The replica whose turn it is, of those that are well and not `tried`; None where there is none."""
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
    """Smooth weighted round robin: each gains its weight, and whoever is chosen pays for all."""
    chosen, total = seats[0], 0
    for seat in seats:
        total += seat.weight
        seat.credit += seat.weight
        if seat.credit > chosen.credit:
            chosen = seat
    chosen.credit -= total
    return chosen.replica
