"""What a fault is called, what must hold when it strikes, and what was measured: one cell of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])

PROPERTY = "fault"  #: under this name a test's report carries its row and its cell


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: `absent` names the columns that it makes no sense for, and why."""

    name: str
    must: str
    absent: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(slots=True)
class Cell:
    """What was measured. Filled in while the test runs, so that a failed one shows how far it came."""

    seen_s: float | None = None  #: from the fault to the first word of the supervisor about it
    again_s: float | None = None  #: from the fault to what the row waits for: served again, gone, refused
    left: int | None = None  #: processes, folders, ports and shared memory that should not be there


def fault(name: str, must: str, absent: Mapping[str, str] | None = None) -> Callable[[Test], Test]:
    """Make a test a row of the table; it gets `here`, each engine in turn, and `cell`."""

    def mark(test: Test) -> Test:
        test.fault = Fault(name, must, absent or {})  # type: ignore[attr-defined]
        return test

    return mark
