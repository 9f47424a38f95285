"""The protocol between the processes of a deployment: every record that one of them writes and another one reads.

    Orders            from the owner to its supervisor, over a pipe; kept in memory for the next supervisor
    News              from the supervisor to whoever follows it or asks for its status; state.json has the last one
    request           from an owner or a command to the supervisor: {"op": "stop"}
    Target, Numbers   its answers to `target` and `metrics`; `refusal` is its answer to what it does not know
    Record            plan.json: the plan, for people and programs, and the ports that are taken

The other side may be of another release, older or newer. Each record is a JSON object that says with `protocol` which
one its writer speaks. A reader passes over keys that it does not know and fills in those that are missing, so a key may
come without a new number; the number grows when an op comes, or when a key gets another meaning. A number that is
higher than ours forbids nothing: what is understood is used, and what is not costs that deployment one sentence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engines.base import DeploymentError, LaunchPlan
from launcher import bounded_json, dataclass_json
from launcher.atomic import write_text
from launcher.procfs import boot_id, is_the_same
from launcher.runtimes.base import Handle
from launcher.supervise.lifecycle import Phase, Policy

PROTOCOL = 1  #: what this release speaks; a record without a number is of the release before, and counts as 0
HAS_KILL = 1  #: the first protocol with the op `kill`; before it, a second `stop` killed

STATE = "state.json"  #: in the deployment's folder: its supervisor's last news
RECORD = "plan.json"  #: beside it, written before there is a supervisor

T = TypeVar("T")


class NewerError(DeploymentError):
    """A newer release has written something that is not understood; the message names the deployment, and is whole."""

    def __init__(self, name: str, number: int, why: str) -> None:
        super().__init__(
            f"{name} was started by a newer rmlaunch (protocol {number}; this one speaks {PROTOCOL}): {why}; stop it "
            f"with that version or `rmlaunch stop {name} --now`"
        )


# ------------------------------------------------------------------------------------------------------------ orders


@dataclass(frozen=True, slots=True)
class Orders:
    """Everything that a supervisor is told. Secrets are in it as they are: it is in pipes and memory, never on disk."""

    plan: LaunchPlan
    runtime: str  #: `module:class`; looking through entry points would cost a fifth of the start
    device: str  #: the plugin, likewise; empty where its memory tells nothing
    folder: str  #: of the deployment
    policy: Policy
    stop_grace_s: float
    stable_s: float
    log_bytes: int = 1 << 25  #: of one log; what is more goes to a second file, and is then forgotten
    api_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  #: the engine's config keys, which a client needs
    detached: bool = False  #: the deployment outlives whoever asked for it
    adopt: Handle | None = None  #: the program that serves already; its last supervisor was killed
    metrics_port: int | None = None  #: on loopback, for Prometheus
    starts: int = 0  #: how many times it had been started by then
    served: bool = False  #: whether it had served by then
    memory_before: Mapping[str, int] | None = None  #: bytes in use on its devices, before the first start
    protocol: int = PROTOCOL  #: of whoever wrote them

    @property
    def home(self) -> Path:
        """The deployment's folder as a path."""
        return Path(self.folder)

    def dumps(self) -> bytes:
        """Return the orders as one line of JSON, secrets included."""
        return _text({**dataclasses.asdict(self), "adopt": None if self.adopt is None else handle_record(self.adopt)})

    @classmethod
    def loads(cls, text: bytes, name: str = "it") -> Orders:
        """Read the orders of the deployment `name`.

        Raises `ValueError` where they are not understood, or `NewerError` where a newer release has written them.
        """
        data = bounded_json.parse(text)
        return _whole(cls, data, name, "its orders are not understood")


def handle_record(handle: Handle) -> dict[str, Any]:
    """Return the JSON object that names one start of a program to another process."""
    return {"protocol": PROTOCOL, **dataclasses.asdict(handle)}


# -------------------------------------------------------------------------------------------------------------- news


@dataclass(frozen=True, slots=True)
class News:
    """The state of a deployment, as its supervisor said last."""

    phase: Phase = Phase.PENDING  #: `state` in JSON
    reason: str = ""
    timed_out: bool = False
    killed: bool = False  #: its last crash was a signal that somebody else sent, and nothing of its own
    returns: bool = False  #: it is being stopped to be started again
    crashes: int = 0
    served: bool = False  #: it has been READY at least once
    starts: int = 0
    pid: int | None = None  #: of the engine's program
    handle: Mapping[str, Any] | None = None  #: the same, as `Handle` has it; None where no program runs
    supervisor: int | None = None  #: its pid
    detached: bool = False
    since: float = 0.0  #: epoch seconds, of the supervisor's start
    log: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    protocol: int = PROTOCOL  #: of whoever said it
    strange: tuple[str, ...] = ()  #: a sentence for each key that was not understood; never written down

    def line(self) -> bytes:
        """Return the news as one line of JSON."""
        data = dataclasses.asdict(self)
        del data["strange"]
        return _text({"state": data.pop("phase").value, **data}) + b"\n"

    @classmethod
    def read(cls, line: bytes, name: str) -> News:
        """Read what the supervisor of `name` says. Raises `ValueError` where it is no JSON object."""
        return cls.of(bounded_json.parse(line), name)

    @classmethod
    def of(cls, data: Mapping[str, Any], name: str) -> News:
        """Take what is understood; the rest is told in `reason`, and where that is the state, the phase is UNKNOWN."""
        data = {"protocol": 0, **data, "phase": data.get("state")}
        data.pop("strange", None)
        given, strange = dataclass_json.understood(cls, data)
        phase = given.setdefault("phase", Phase.UNKNOWN)
        if strange:
            told = f"its supervisor's word is not understood: {'; '.join(strange)}"
            if (number := given.get("protocol", 0)) > PROTOCOL:
                told = str(NewerError(name, number, told))
            given["reason"] = "; ".join(filter(None, (given.get("reason", ""), told)))
        if "handle" not in data and not phase.final:
            strange.append("handle is missing")
        return cls(**given, strange=tuple(strange))

    def program(self) -> Handle | None:
        """Return the program's handle; None where there was no program. Raises `ValueError` where that is not told."""
        for why in self.strange:
            if why.startswith("handle"):
                raise ValueError(why)
        return None if self.handle is None else dataclass_json.load(Handle, self.handle)

    @property
    def may_run(self) -> bool:
        """Whether the program may still run. Raises `ValueError` where the news do not tell."""
        if self.phase.final:
            return False
        handle = self.program()
        if handle is None:
            return self.phase.running or self.phase is Phase.UNKNOWN
        return handle.boot_id == boot_id() and (not handle.pid or is_the_same(handle.pid, handle.started))


def read_state(folder: Path) -> News:
    """Read the state.json of the deployment in `folder`. Raises `OSError`, or `ValueError` for what is no object."""
    return News.of(bounded_json.read(folder / STATE), folder.name)


def write_state(folder: Path, news: News) -> None:
    """Put `news` in the place of the state.json in `folder`. Raises `OSError`."""
    write_text(folder / STATE, news.line().decode())


# ---------------------------------------------------------------------------------------------- requests and answers


@dataclass(frozen=True, slots=True)
class Target:
    """The answer to `target`: how the engine is reached, secrets included."""

    plan: LaunchPlan
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = None
    protocol: int = PROTOCOL

    def line(self) -> bytes:
        """Return the answer as one line of JSON, secrets included."""
        return _text(dataclasses.asdict(self)) + b"\n"


@dataclass(frozen=True, slots=True)
class Numbers:
    """The answer to `metrics`: the deployment's numbers, as Prometheus reads them."""

    text: str
    protocol: int = PROTOCOL

    def line(self) -> bytes:
        """Return the answer as one line of JSON."""
        return _text(dataclasses.asdict(self)) + b"\n"


def request(op: str) -> bytes:
    """Return the line that asks a supervisor for `op`."""
    return _text({"op": op}) + b"\n"


def requested(line: bytes) -> object:
    """Return the op that `line` asks for, which may be anything. Raises `ValueError` where it is no JSON object."""
    return bounded_json.parse(line).get("op")


def refusal(op: object) -> bytes:
    """Return the answer to an `op` that this release does not know."""
    known = "follow, status, target, metrics, stop, kill or restart"
    return _text({"error": f"op={op!r} is not known; use {known}"}) + b"\n"


def answered(line: bytes) -> dict[str, Any]:
    """Return the answer that `line` is; one with an `error` is a refusal. Raises `ValueError` for no JSON object."""
    return bounded_json.parse(line)


def told(name: str, data: Mapping[str, Any], why: str) -> str:
    """Say of the deployment `name` in one sentence `why` its record `data` is of no use."""
    number = _number(data)
    return str(NewerError(name, number, why)) if number > PROTOCOL else f"{name}: {why}"


def learned(kind: type[T], answer: Mapping[str, Any], name: str, op: str) -> T:
    """Return the `answer` of the supervisor of `name` to `op` as a `kind`. Raises as `Orders.loads` does."""
    return _whole(kind, answer, name, f"its supervisor's answer to {op} is not understood")


# --------------------------------------------------------------------------------------------------------- plan.json


@dataclass(frozen=True, slots=True)
class Record:
    """The content of plan.json. A plan in it that is of another release, or damaged, is taken as far as it is."""

    ports: tuple[int, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)  #: as `rmlaunch plan --json` prints it, secrets masked
    protocol: int = PROTOCOL

    @property
    def runtime(self) -> str | None:
        """The name of its runtime; None where that is not told."""
        told = self.plan.get("runtime")
        return told if isinstance(told, str) else None

    @property
    def devices(self) -> tuple[str, tuple[int, ...]]:
        """The kind of its devices and their numbers; empty where they are not told."""
        match self.plan.get("device"):
            case {"kind": str(kind), "ids": [*ids]} if all(type(number) is int for number in ids):
                return kind, tuple(ids)
        return "", ()


def read_record(folder: Path) -> Record:
    """Read the plan.json of the deployment in `folder`. Raises `OSError`, or `ValueError` for what is no object."""
    given, _ = dataclass_json.understood(Record, {"protocol": 0, **bounded_json.read(folder / RECORD)})
    return Record(**given)


def write_record(folder: Path, record: Record) -> None:
    """Put `record` in the place of the plan.json in `folder`. Raises `OSError`."""
    # Not `asdict`: the plan is plain JSON already, and may be a mapping of any kind.
    data = {"protocol": PROTOCOL, "ports": record.ports, "plan": record.plan}
    write_text(folder / RECORD, json.dumps(data, indent=1))


def _text(data: Mapping[str, Any]) -> bytes:
    return json.dumps({**data, "protocol": PROTOCOL}).encode()


def _number(data: Mapping[str, Any]) -> int:
    number = data.get("protocol", 0)
    return number if type(number) is int else 0


def _whole(kind: type[T], data: Mapping[str, Any], name: str, what: str) -> T:
    """Make the `kind` that `data` is. Raises `ValueError`, which for a newer release is a `NewerError`."""
    try:
        return dataclass_json.load(kind, {"protocol": 0, **data})
    except ValueError as exc:
        if (number := _number(data)) > PROTOCOL:
            raise NewerError(name, number, f"{what}: {exc}") from exc
        raise
