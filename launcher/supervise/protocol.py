"""The protocol between a deployment's processes: what a supervisor is told, and what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.base import LaunchPlan
from launcher import bounded_json, dataclass_json
from launcher.runtimes.base import Handle
from launcher.supervise.lifecycle import Phase, Policy


def plugin_at(place: str) -> Any:
    """An instance of the plugin at `place`, which is `module:class`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)()


@dataclass(frozen=True, slots=True)
class Orders:
    """Secrets are in it as they are: it travels through pipes and memory of our own processes, never a disk."""

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

    @property
    def home(self) -> Path:
        return Path(self.folder)

    def dumps(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def loads(cls, text: bytes) -> Orders:
        """Raises `ValueError` where they are not understood."""
        return dataclass_json.load(cls, bounded_json.parse(text))


@dataclass(frozen=True, slots=True)
class News:
    """What the supervisor said last."""

    phase: Phase = Phase.PENDING
    reason: str = ""
    timed_out: bool = False
    killed: bool = False  #: its last crash was a signal that somebody else sent, and nothing of its own
    returns: bool = False  #: it is being stopped to be started again
    crashes: int = 0
    served: bool = False  #: it has been READY at least once
    starts: int = 0
    pid: int | None = None  #: of the engine's program
    handle: Mapping[str, Any] | None = None  #: the same, as `Handle` has it
    supervisor: int | None = None  #: its pid
    detached: bool = False
    since: float = 0.0  #: epoch seconds, of the supervisor's start
    log: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @classmethod
    def read(cls, line: bytes) -> News:
        """Raises `ValueError` where it is no JSON object."""
        return cls.of(bounded_json.parse(line))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> News:
        """Take what is understood: the supervisor may be of another version. The rest is told in `reason`."""
        given, strange = dataclass_json.understood(cls, {**data, "phase": data.get("state")})
        if strange:
            reasons = [given.get("reason", ""), *(f"its supervisor's word is not understood: {why}" for why in strange)]
            given["reason"] = "; ".join(filter(None, reasons))
        return cls(**{"phase": Phase.UNKNOWN, **given})
