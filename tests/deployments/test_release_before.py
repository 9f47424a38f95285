"""Deployments that the release before has really started, in the hands of this one, with a supervisor and without."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from launcher.runtimes.process import ProcessRuntime
from launcher.serving.attached import Attached
from launcher.supervise.lifecycle import Phase
from tests.deployments.test_records import kill, pids
from tests.releases import FAKES, serves
from tests.supervision import free_port, is_alive, marked_processes, wait_for

#: the release before the protocol had a number
COMMIT = "974cf58"
ROOT = Path(__file__).parents[2]

#: start argv[3:] detached, with its own code, under the state folder argv[1] and with a grace of argv[2] seconds
START = """\
import dataclasses, sys
from pathlib import Path
from engines.base import HttpCheck
from launcher.control import Supervised, orders_for
from launcher.spawn import Spawned
from tests.supervision import claimed, fake_plan, settings

state, grace, readiness, *words = sys.argv[1:]
plan = fake_plan(Path(state))
port = str(plan.endpoints.http.port)
ask = HttpCheck("/v1/completions", "POST", {"model": "m", "prompt": "hi"}, expect="choices")
probes = dataclasses.replace(plan.probes, readiness=ask) if readiness == "completions" else plan.probes
argv = (sys.executable, *words, "--port", port)
plan = dataclasses.replace(plan, engine="llamacpp", argv=argv, probes=probes)
claim = claimed(plan, Path(state))
owner = Supervised(Spawned(), orders_for(plan, claim.folder, settings(3, float(grace)), detached=True), claim)
owner.wait_ready()
owner.close()
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    command = ["git", "-C", str(ROOT), "archive", COMMIT]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", b"").decode(errors="replace").strip() or str(exc)
        pytest.skip(
            f"not run here: the release before ({COMMIT}) is not in this clone ({said}); `git fetch --unshallow` "
            "brings it. What it wrote is tried all the same, by tests/deployments/test_releases.py"
        )
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def state() -> Path:
    return state_root()


def run(tree: Path, *words: str) -> None:
    """Run Python with the code of the release before."""
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def ended(folder: Path) -> Iterator[None]:
    """Nothing of the deployment in `folder` is left after the block."""
    try:
        yield
    finally:
        for file in ("supervisor", "pid"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                os.kill(json.loads((folder / "state.json").read_text())[file], signal.SIGKILL)
        ProcessRuntime().clear(str(folder / "run"), {})


@contextlib.contextmanager
def started(
    tree: Path, state: Path, *words: str, grace_s: float = 5.0, readiness: str = "completions"
) -> Iterator[Path]:
    """The folder of a deployment of the release before, which serves."""
    folder = state / "deployments/fake"
    with ended(folder):
        run(tree, "-c", START, str(state), str(grace_s), readiness, *words)
        assert "protocol" not in json.loads((folder / "state.json").read_text())
        yield folder


SERVER = str(FAKES / "openai_server.py")
DEAF = (str(FAKES / "misbehaving_server.py"), "--ignore-sigterm")


def infer(state: Path) -> object:
    client = Attached(Deployments(state).find("fake"))
    try:
        return client.infer([{"role": "user", "content": "hi"}])
    finally:
        client.close()


def test_it_is_listed_asked_restarted_and_stopped(tree: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(tree, state, SERVER) as folder:
        supervisor, program = pids(state)
        assert b"from launcher.supervisor import main" in Path(f"/proc/{supervisor}/cmdline").read_bytes()
        assert main.run(["ps"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["fake", "READY", "llamacpp"]
        assert main.run(["status", "fake", "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["state"], status["reason"], status["pid"], status["starts"]) == ("READY", "", program, 1)
        assert main.run(["logs", "fake"]) == 0
        assert main.run(["metrics", "fake"]) == 0
        assert 'rmlaunch_starts_total{deployment="fake"} 1' in capsys.readouterr().out
        assert infer(state) == "yes"
        assert main.run(["restart", "fake"]) == 0
        assert (pids(state)[0], is_alive(program)) == (supervisor, False)

        assert main.run(["stop", "fake"]) == 0

        assert marked_processes(str(folder / "run")) == []
        assert (is_alive(supervisor), Deployments(state).find("fake").news.phase) == (False, Phase.STOPPED)


def test_its_program_is_adopted_when_its_supervisor_is_killed(tree: Path, state: Path) -> None:
    with started(tree, state, SERVER) as folder:
        supervisor, program = pids(state)
        kill(supervisor)

        found = Deployments(state).find("fake")

        assert (found.live, found.news.phase, found.news.pid, found.news.protocol) == (True, Phase.READY, program, 1)
        assert infer(state) == "yes"
        kill(program)
        wait_for(lambda: Deployments(state).find("fake").news.starts == 2)
        wait_for(lambda: Deployments(state).find("fake").news.phase is Phase.READY)
        assert infer(state) == "yes"
        assert main.run(["stop", "fake"]) == 0
        assert marked_processes(str(folder / "run")) == []


@pytest.mark.parametrize("words", [["stop", "fake", "--now"], ["kill", "fake"]])
def test_a_kill_does_not_wait_for_its_grace(tree: Path, state: Path, words: list[str]) -> None:
    with started(tree, state, *DEAF, grace_s=600.0, readiness="own") as folder:
        began = time.monotonic()
        assert main.run(words) == 0
        assert time.monotonic() - began < 5
        assert marked_processes(str(folder / "run")) == []


@pytest.mark.usefixtures("_impatient")
def test_one_that_hangs_is_killed_by_force(tree: Path, state: Path) -> None:
    with started(tree, state, SERVER) as folder:
        supervisor, program = pids(state)
        os.kill(supervisor, signal.SIGSTOP)

        assert main.run(["kill", "fake"]) == 0

        assert (is_alive(supervisor), is_alive(program)) == (False, False)
        assert marked_processes(str(folder / "run")) == []


def test_it_is_replaced_by_one_of_this_release(tree: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    words = ["engine=remote", f"engine.url=http://127.0.0.1:{port}/v1", "engine.list_models=false",
             "model=remote", "name=fake"]  # fmt: skip
    with subprocess.Popen([sys.executable, SERVER, "--port", str(port)]) as server, ended(state / "deployments/fake"):
        try:
            wait_for(lambda: serves(port))
            run(tree, "-m", "launcher.cli", "up", "-d", *words, "model.id=one")
            supervisor = Deployments(state).find("fake").news.supervisor
            assert supervisor is not None
            assert main.run(["up", "-d", *words, "model.id=one"]) == 0
            assert "fake is already up" in capsys.readouterr().err

            assert main.run(["up", "-d", "--replace", *words, "model.id=two"]) == 0

            found = Deployments(state).find("fake")
            assert (found.news.phase, found.news.protocol, found.told("model", "id")) == (Phase.READY, 1, "two")
            assert not is_alive(supervisor)
            assert main.run(["stop", "fake"]) == 0
        finally:
            server.kill()
