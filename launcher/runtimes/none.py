"""No program at all: somebody else runs the server, and only its health is watched."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from engines.base import DeploymentError, LaunchPlan
from launcher.runtimes.base import Activity, Exit, Handle, Runtime


class NoRuntime(Runtime):
    """It "runs" from `start` until `terminate`, and never ends by itself. A handle of it names no process: pid 0."""

    name: ClassVar[str] = "none"

    def __init__(self) -> None:
        self._running = False

    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:  # noqa: ARG002
        log.touch()
        self._running = True
        return Handle(0, 0, "")

    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:  # noqa: ARG002
        raise DeploymentError("no program was started, so there is none to adopt")

    def end_of(self, handle: Handle) -> int | None:  # noqa: ARG002
        return None

    def poll(self, handle: Handle) -> Exit | None:  # noqa: ARG002
        return None if self._running else Exit(-signal.SIGTERM)

    def listens(self, handle: Handle, port: int) -> bool:  # noqa: ARG002
        """True: whoever listens there is the one that was asked for."""
        return True

    def activity(self, handle: Handle) -> Activity | None:  # noqa: ARG002
        return None

    def terminate(self, handle: Handle) -> None:  # noqa: ARG002
        self._running = False

    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        self._running = False
        return ()

    def saved_orders(self, handle: Handle) -> bytes | None:  # noqa: ARG002
        return None

    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        return ()
