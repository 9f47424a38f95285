"""No program at all: somebody else runs the server, and only its health is watched."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from engines.base import DeploymentError, LaunchPlan
from launcher.runtimes.base import Activity, Exit, Handle, Runtime


class NoRuntime(Runtime):
    """The runtime without a program: it "runs" from `start` until `terminate`, and never ends by itself.

    Its handle names no process: pid 0.
    """

    name: ClassVar[str] = "none"

    def __init__(self) -> None:
        self._running = False

    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:  # noqa: ARG002
        """Count as running from now on; nothing is written to `log`."""
        log.touch()
        self._running = True
        return Handle(0, 0, "")

    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:  # noqa: ARG002
        """Raise `DeploymentError`: no program was started."""
        raise DeploymentError("no program was started, so there is none to adopt")

    def end_of(self, handle: Handle) -> int | None:  # noqa: ARG002
        """Return None: only we can end it."""
        return None

    def poll(self, handle: Handle) -> Exit | None:  # noqa: ARG002
        """Return an end by SIGTERM after `terminate` or `sweep`; None before."""
        return None if self._running else Exit(-signal.SIGTERM)

    def listens(self, handle: Handle, port: int) -> bool:  # noqa: ARG002
        """Return True: whoever listens there is the one that was asked for."""
        return True

    def activity(self, handle: Handle) -> Activity | None:  # noqa: ARG002
        """Return None: nobody here sees the server's processes."""
        return None

    def terminate(self, handle: Handle) -> None:  # noqa: ARG002
        """Count as ended from now on."""
        self._running = False

    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        """Count as ended from now on; nothing can be left."""
        self._running = False
        return ()

    def saved_orders(self, handle: Handle) -> bytes | None:  # noqa: ARG002
        """Return None: there is no program that could keep orders."""
        return None

    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:  # noqa: ARG002
        """Return (): nothing can be left."""
        return ()
