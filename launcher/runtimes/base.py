"""The contract of a runtime: where the engine's program runs.

One supervisor thread calls it, but for `listens` and `activity`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from engines.base import LaunchPlan

#: the exit code of a program that is not our child; no real one is as high
UNSEEN = 256


@dataclass(frozen=True, slots=True)
class Handle:
    """One start of the engine's program. Its pid alone names nobody: pids are reused, and a reboot starts over."""

    pid: int
    started: int  #: clock ticks from boot to its start
    boot_id: str
    version: int = 1


@dataclass(frozen=True, slots=True)
class Activity:
    """What the processes of a program have done since they were started."""

    cpu_s: float
    read_bytes: int  #: by calls, from files and sockets; what is mapped shows as time alone


class Runtime(ABC):
    name: ClassVar[str]

    @abstractmethod
    def start(self, plan: LaunchPlan, log: Path, legacy: bytes | None = None) -> Handle:
        """Start the program, both of its outputs appended to `log`; does not wait for it to be ready.

        With `legacy` it outlives us, and keeps that for whoever adopts it; without, it dies with us. Raises
        `DeploymentError` where it cannot be started at all.
        """

    @abstractmethod
    def adopt(self, handle: Handle) -> int:
        """Take over a program that another supervisor has started; returns a descriptor that is readable when it has
        ended. Raises `DeploymentError` where it is gone."""

    @abstractmethod
    def poll(self, handle: Handle) -> int | None:
        """None while the program runs, then its exit code; -N where signal N ended it, and `UNSEEN` where it was
        adopted. Never blocks."""

    @abstractmethod
    def listens(self, handle: Handle, port: int) -> bool:
        """Whether it is this program, or a worker of it, that listens on `port`. Called from the probes' thread."""

    @abstractmethod
    def activity(self, handle: Handle) -> Activity | None:
        """None where it cannot be told. Called from the probes' thread."""

    @abstractmethod
    def terminate(self, handle: Handle) -> None:
        """Ask the program to drain and end. Does not wait; asking one that is gone does nothing."""

    @abstractmethod
    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:
        """Kill every process of the deployment, workers of every kind, and remove what the plan calls leftovers.

        Blocks until they are gone, at most `deadline_s`; returns what is still there, in words. () is a clean stop.
        """
