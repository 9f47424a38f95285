"""Each engine in turn, with one deployment that the rows share, and the cells for the table."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.supervise.lifecycle import Phase
from tests import dockerd
from tests.faults import machine
from tests.faults.columns import COLUMNS, Column
from tests.faults.deployment import Deployment, Started
from tests.faults.fault import PROPERTY, Cell, Fault

_STATE_MB = 32
_LOGS_MB = 2


class Here:
    """The engine of one column: a deployment that stays for as long as its rows need it, and others of their own."""

    def __init__(self, column: Column, root: Path, daemon: dockerd.Daemon | None) -> None:
        self.column = column
        self.daemon = daemon  #: where it runs in containers
        self.state = root / "state"
        self._root = root
        self.grandchild = root / "grandchild"  #: the fake writes its pid there
        self._made: list[Deployment] = []
        self._mounted: list[Path] = []
        self._mount(self.state, _STATE_MB)
        self._shared = self.deployment("shared")
        self._mount(self._shared.folder / "logs", _LOGS_MB)

    def deployment(self, name: str, column: Column | None = None) -> Deployment:
        """One that has not been started; nothing of it is left when the column ends."""
        temporary = self._root / f"t{len(self._made)}"
        temporary.mkdir()
        env = {"DOCKER_HOST": self.daemon.host} if self.daemon else {}
        self._made.append(Deployment(column or self.column, name, self.state, temporary, env))
        return self._made[-1]

    def shared(self) -> Deployment:
        """The deployment that the rows share, detached and READY: started if it is not there."""
        deployment = self._shared
        news = deployment.listed()
        if news is None or news.phase.final:
            deployment.end()
            options = ("--setsid-child", str(self.grandchild), "--ready-after", "0.5", "--say", "here I am")
            code, errors = deployment.start(*options, detached=True, max_crashes=4).finish(self.column.load_s)
            assert code == 0, errors
        with deployment.witness() as witness:
            witness.wait_ready(self.column.load_s)
            # It has served for `stable_s`, and the crashes of earlier rows are forgotten.
            witness.wait(lambda news: news.phase is Phase.READY and news.crashes == 0, 5.0)
        return deployment

    def close(self) -> None:
        for deployment in self._made:
            deployment.end()
        for folder in reversed(self._mounted):
            machine.unmount(folder)

    def _mount(self, folder: Path, megabytes: int) -> None:
        if machine.mount(folder, megabytes):
            self._mounted.append(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    row: Fault | None = getattr(metafunc.function, "fault", None)
    if row is not None:
        columns = [_parameter(column) for column in COLUMNS if column.name not in row.absent]
        metafunc.parametrize("here", columns, indirect=True, scope="session")


def _parameter(column: Column) -> object:
    marks = [pytest.mark.real, pytest.mark.timeout(900)] if column.real else [pytest.mark.timeout(120)]
    return pytest.param(column, id=column.name, marks=marks)


@pytest.fixture(scope="session")
def here(request: pytest.FixtureRequest) -> Iterator[Here]:
    # Short: engines make Unix sockets below it, whose paths end at 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="flt-"))
    daemon = request.getfixturevalue("docker_daemon") if request.param.in_docker else None
    here = Here(request.param, root, daemon)
    try:
        yield here
    finally:
        here.close()
        shutil.rmtree(root)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    cell = Cell()
    request.node.user_properties.append((PROPERTY, cell))
    return cell


@pytest.fixture
def commands() -> Iterator[list[Started]]:
    """Commands that run beside the test; those put here end with it."""
    started: list[Started] = []
    with contextlib.ExitStack() as stack:
        yield started
        for command in started:
            stack.callback(command.kill)
