"""What every test gets: folders of its own, and on CI no `real` test that was only skipped."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from launcher.config import compose
from tests import dockerd
from tests.composing import Composed
from tests.supervision import first_port

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_COMPOSED = Composed()


def pytest_configure() -> None:
    """Launches that choose ports choose other ones than those of other tests and users, and configs are kept."""
    os.environ["RMLAUNCH_FIRST_PORT"] = str(first_port())
    compose._composed = _COMPOSED


@pytest.fixture(autouse=True)
def _own_folders(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # Real engines' environments take minutes to make: those tests share the machine's.
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("RMLAUNCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _composed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of composing itself do without what others have composed."""
    monkeypatch.setattr(compose, "_composed", _COMPOSED.anew)


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[dockerd.Daemon]:
    """Of everybody who has the marker `real`: it takes root, and most of a minute where nothing is cached."""
    if why := dockerd.missing():
        pytest.skip(f"not run here: {why}")
    with dockerd.running() as daemon:
        yield daemon


@pytest.fixture
def docker_host(docker_daemon: dockerd.Daemon, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set as DOCKER_HOST for one test."""
    docker_daemon.ensure()
    monkeypatch.setenv("DOCKER_HOST", docker_daemon.host)
    return docker_daemon.host


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI the job that is meant for real engines must run them: a skip there is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"a real test was skipped on CI: {report.longrepr}"
    return report
