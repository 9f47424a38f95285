"""The contract of a runtime: where the engine's program runs.

One supervisor thread calls it, but for `listens` and `activity`; `saved_orders` and `clear` are for those who find a
program without its supervisor, each with an instance of their own.
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

    pid: int  #: on this machine; 0 where it has none here
    started: int  #: clock ticks from boot to its start
    boot_id: str
    container: str = ""  #: the id, where it is one
    daemon: str = ""  #: that has the container
    keeper: int = 0  #: the pid of the process on this machine that keeps a container's orders; 0 where none does
    keeper_started: int = 0  #: clock ticks from boot to its start
    version: int = 3


class NotAdoptableError(DeploymentError):
    """Nobody can adopt the program, whether it runs or not; the message says why."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended."""

    code: int  #: -N where signal N ended it, and `UNSEEN` where nobody saw it
    out_of_memory: bool = False  #: the kernel has killed somebody for memory since it was started


@dataclass(frozen=True, slots=True)
class Activity:
    """What the processes of a program have done since they were started."""

    cpu_s: float
    read_bytes: int  #: by calls, from files and sockets; what is mapped shows as time alone


class Runtime(ABC):
    name: ClassVar[str]

    @abstractmethod
    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:
        """Start the program, both of its outputs appended to `log`; does not wait for it to be ready.

        With `orders` it outlives us, and keeps that for whoever adopts it; without, it ends with us, or is ended by the
        next command that finds it. Raises `DeploymentError` where it cannot be started at all.
        """

    @abstractmethod
    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:
        """Take over a program that another supervisor has started. Raises `DeploymentError` where it is gone."""

    @abstractmethod
    def end_of(self, handle: Handle) -> int | None:
        """Return a descriptor that becomes readable when the program has ended, open until the next start; None where
        a SIGCHLD says so."""

    @abstractmethod
    def poll(self, handle: Handle) -> Exit | None:
        """Return how the program ended; None while it runs. Never blocks."""

    @abstractmethod
    def listens(self, handle: Handle, port: int) -> bool:
        """Whether it is this program, or a worker of it, that listens on `port`. Called from the probes' thread."""

    @abstractmethod
    def activity(self, handle: Handle) -> Activity | None:
        """Return what its processes have done; None where it cannot be told. Called from the probes' thread."""

    @abstractmethod
    def terminate(self, handle: Handle) -> None:
        """Ask the program to drain and end. Does not wait; asking one that is gone does nothing."""

    @abstractmethod
    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:
        """Kill every process of the deployment, workers of every kind, and remove what the plan calls leftovers.

        Blocks until they are gone, at most `deadline_s`; returns what is still there, in words. () is a clean stop.
        """

    @abstractmethod
    def saved_orders(self, handle: Handle) -> bytes | None:
        """Return the orders that `start` was given to keep; None where there were none, or the program has ended.

        Raises `NotAdoptableError` where it is lost, and another `DeploymentError` where that cannot be told now.
        """

    @abstractmethod
    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:
        """Kill and remove as `sweep`, for the deployment whose folder is `run_dir` and that nobody supervises; `plan`
        is the plan of its record (`plan_json.public`)."""
