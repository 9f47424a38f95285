"""The contract of a runtime: where the engine's program runs.

One supervisor thread calls all but `listens` and `activity`, which the probes' thread calls. `saved_orders` and `clear`
are for whoever finds a program without its supervisor; each such caller has an instance of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engines.base import DeploymentError, LaunchPlan

#: the exit code of a program that is not our child; no real one is as high
UNSEEN = 256


@dataclass(frozen=True, slots=True)
class Handle:
    """One start of the engine's program. Its pid alone names nobody: pids are reused, and a reboot starts over."""

    pid: int  #: the program's pid on this machine; 0 if it has none here
    started: int  #: clock ticks from boot to its start
    boot_id: str
    container: str = ""  #: the container's id; empty for a process
    daemon: str = ""  #: address of the daemon that has the container
    keeper: int = 0  #: pid of the process on this machine that keeps a container's orders; 0 for none
    keeper_started: int = 0  #: clock ticks from boot to its start
    version: int = 3


class NotAdoptableError(DeploymentError):
    """Nobody can adopt the program, whether it runs or not; the message says why."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a program."""

    code: int  #: -N if signal N ended it, `UNSEEN` if nobody saw the end
    out_of_memory: bool = False  #: the kernel has killed somebody for memory since it was started


@dataclass(frozen=True, slots=True)
class Activity:
    """The work of a program's processes since they were started."""

    cpu_s: float
    read_bytes: int  #: read by calls from files and sockets; reads of mapped files show only in `cpu_s`


class Runtime(ABC):
    """One way to run an engine's program. An instance has one program at a time."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:
        """Start the program, both of its outputs appended to `log`; does not wait for it to be ready.

        With `orders` the program outlives us, and they are kept for whoever adopts it. Without, it ends with us, or the
        next command that finds it ends it. Raises `DeploymentError` if it cannot be started at all.
        """

    @abstractmethod
    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:
        """Take over a program that another supervisor has started. Raises `DeploymentError` if it is gone."""

    @abstractmethod
    def end_of(self, handle: Handle) -> int | None:
        """Return a descriptor that becomes readable when the program has ended; None if a SIGCHLD says so.

        The descriptor is open until the next start.
        """

    @abstractmethod
    def poll(self, handle: Handle) -> Exit | None:
        """Return how the program ended; None while it runs. Never blocks."""

    @abstractmethod
    def listens(self, handle: Handle, port: int) -> bool:
        """Return whether this program, or a worker of it, listens on `port`. Called from the probes' thread."""

    @abstractmethod
    def activity(self, handle: Handle) -> Activity | None:
        """Return the work done so far; None if it cannot be told. Called from the probes' thread."""

    @abstractmethod
    def terminate(self, handle: Handle) -> None:
        """Ask the program to drain and end. Does not wait; asking one that is gone does nothing."""

    @abstractmethod
    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:
        """Kill every process of the deployment, workers of every kind, and remove what the plan calls leftovers.

        Blocks until they are gone, at most `deadline_s`. Returns in words what is still there; () is a clean stop.
        """

    @abstractmethod
    def saved_orders(self, handle: Handle) -> bytes | None:
        """Return the orders that `start` was given to keep; None if there were none, or the program has ended.

        Raises `NotAdoptableError` if they are lost, and another `DeploymentError` if that cannot be told now.
        """

    @abstractmethod
    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:
        """Do what `sweep` does, for a deployment that nobody supervises, whose folder is `run_dir`.

        `plan` is the part of the plan that its record has (`plan_json.public`).
        """
