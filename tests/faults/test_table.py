"""The published table: it names every fault, and shows what did not hold or did not run."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType

from tests.faults import test_running, test_starting, test_stopping
from tests.faults.fault import Cell, Fault
from tests.faults.report import Result, Table

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


def _faults() -> list[Fault]:
    modules = (test_running, test_starting, test_stopping)
    tests = [thing for module in modules for thing in vars(module).values() if isinstance(thing, FunctionType)]
    return [test.fault for test in tests if hasattr(test, "fault")]


def test_the_published_table_has_a_row_for_each_fault_and_all_of_them_held() -> None:
    page = PAGE.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]

    assert [line.split(" | ")[:2] for line in rows] == [[f"| {row.name}", row.must] for row in _faults()]
    assert "**FAILED**" not in "".join(rows)
    assert "**not run**" not in "".join(rows)


def test_a_cell_shows_how_its_test_ended() -> None:
    row = Fault("a fault", "something", absent={"llamacpp": "no worker"})
    results = {
        "triton": Result(Cell(0.02, 3.94, 0), "passed"),
        "torchserve": Result(Cell(left=0), "passed"),
        "vllm": Result(Cell(0.5, None, 2), "failed", "assert 2 == 0"),
        "fake": Result(None, "not run", "not run here: no root"),
    }

    lines = Table({row: results}).render("a machine").splitlines()

    assert (
        "| a fault | something | 20 ms → 3.9 s · 0 | 0 | **FAILED** 0.5 s · 2 | – | "
        "**not run** | **not run** | **not run** |"
    ) in lines
    assert "- –: llamacpp: no worker." in lines
    assert "- a fault, vllm: assert 2 == 0" in lines
    assert "- a fault, fake: not run here: no root" in lines


def test_a_test_that_never_ran_is_no_pass() -> None:
    assert "| **not run** |" in Table({Fault("a fault", "something"): {}}).render("a machine")
