"""`make faults`: strike every engine with every fault, and write what was measured to docs/faults.md.

python -m tests.faults.report [-k triton]     with a choice of tests it prints the table and writes nothing
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.faults.fault import PROPERTY, Cell, Fault

_TARGET = Path(__file__).parents[2] / "docs" / "faults.md"
_ORDER = ("triton", "torchserve", "vllm", "llamacpp", "triton (docker)", "llamacpp (docker)", "fake")
_HEAD = """# Faults

`make faults` (tests/faults/) strikes a deployment with each fault below, checks what must hold then, and measures it.
The command writes this page. A cell whose claims did not hold says FAILED.

A cell reads `a → b · n`. The supervisor told of the fault after `a`. At `b` after the fault the deployment served
again, was gone, or had refused, whichever the row is about. `n` processes, files, ports and pieces of shared memory
were left that should not be. A cell leaves out what its row does not measure. *fake* is a small server that misbehaves
as it is told, with a worker of its own; *(docker)* is the same engine with runtime=docker.

Liveness is set to a check each second, 2 s for an answer, 2 failures in a row (fake: 0.05 s, 0.3 s, 2). The numbers are
from {machine}.
"""


@dataclass(slots=True)
class Result:
    """One cell, and how its test ended."""

    cell: Cell | None = None
    outcome: str = "not run"  #: passed, failed, not run
    words: str = ""  #: why it failed or was not run


@dataclass(slots=True)
class Table:
    """Hears how each test ends, as a plugin of pytest."""

    results: dict[Fault, dict[str, Result]] = field(default_factory=dict)
    whole: bool = True  #: nothing was left out
    _places: dict[str, Result] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in sorted(items, key=lambda item: item.reportinfo()[:2]):  # as they are written, file by file
            row = getattr(getattr(item, "function", None), "fault", None)
            callspec = getattr(item, "callspec", None)
            if row is not None and callspec is not None:
                result = self._places[item.nodeid] = Result()
                self.results.setdefault(row, {})[callspec.params["here"].name] = result

    def pytest_deselected(self) -> None:
        self.whole = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        result = self._places.get(report.nodeid)
        if result is None:
            return
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, Cell):
                result.cell = value
        if report.failed:
            result.outcome, result.words = "failed", _last_line(report)
        elif report.skipped:
            result.outcome, result.words = "not run", _last_line(report)
        elif report.when == "call":
            result.outcome = "passed"

    def render(self, machine: str) -> str:
        lines = [_HEAD.format(machine=machine), f"| fault | what must hold | {' | '.join(_ORDER)} |"]
        lines.append("| --- | --- |" + " --- |" * len(_ORDER))
        for row, results in self.results.items():
            cells = [_shown(row, results, column) for column in _ORDER]
            lines.append(f"| {row.name} | {row.must} | {' | '.join(cells)} |")
        return "\n".join([*lines, *_notes(self.results)]) + "\n"


def _shown(row: Fault, results: dict[str, Result], column: str) -> str:
    if column in row.absent:
        return "–"
    result = results.get(column, Result())
    measured = _measured(result.cell) if result.cell else ""
    if result.outcome == "passed":
        return measured or "holds"
    return f"**{'FAILED' if result.outcome == 'failed' else 'not run'}** {measured}".strip()


def _measured(cell: Cell) -> str:
    times = " → ".join(_seconds(value) for value in (cell.seen_s, cell.again_s) if value is not None)
    return " · ".join(part for part in (times, "" if cell.left is None else str(cell.left)) if part)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.1f} s"


def _notes(results: dict[Fault, dict[str, Result]]) -> list[str]:
    """Why cells are empty, each reason once, and what went wrong in others."""
    absent = sorted({(column, why) for row in results for column, why in row.absent.items()})
    notes = [f"–: {column}: {why}." for column, why in absent]
    notes += [
        f"{row.name}, {column}: {result.words}"
        for row, columns in results.items()
        for column, result in columns.items()
        if result.outcome != "passed" and result.words
    ]
    return ["", *(f"- {note}" for note in notes)] if notes else []


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {system}, Python {platform.python_version()}, CPU only"


def main() -> int:
    table = Table()
    folder = Path(__file__).parent
    # Not the test of the page that this run is about to write.
    code = pytest.main([str(folder), f"--ignore={folder / 'test_table.py'}", *sys.argv[1:]], plugins=[table])
    if table.results:
        text = table.render(_machine())
        sys.stdout.write(text)
        if table.whole:
            _TARGET.write_text(text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
