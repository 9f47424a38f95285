"""Many launches of one name at once: one starts it, the others wait for it and say what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engines.base import DeploymentError
from launcher.cli.up import _differences
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase
from tests.deployments.test_ledger import held
from tests.gateway.harness import FAKE
from tests.supervision import free_port, wait_for

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def port() -> Iterator[int]:
    """A server that somebody else runs: what is launched watches it."""
    port = free_port()
    with subprocess.Popen([sys.executable, str(FAKE), "--port", str(port), "--name", "theirs"]) as server:
        try:
            yield port
        finally:
            rmlaunch("stop", "--all", "--now").communicate(timeout=60)
            server.kill()


def rmlaunch(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def up(port: int, *words: str) -> subprocess.Popen[str]:
    remote = ["engine=remote", "model=remote", "model.id=m", "engine.list_models=false", "name=a"]
    return rmlaunch("up", "-d", *remote, f"engine.url=http://127.0.0.1:{port}/v1", *words)


def await_line(launch: subprocess.Popen[str], beginning: str) -> None:
    assert launch.stderr is not None
    assert any(line.startswith(beginning) for line in iter(launch.stderr.readline, "")), beginning


def ended(launches: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    told = [launch.communicate(timeout=90) for launch in launches]
    return [(launch.returncode, *words) for launch, words in zip(launches, told, strict=True)]


def test_one_starts_it_and_the_others_say_that_it_is_up(port: int) -> None:
    with held(state_root() / "ledger.lock"):
        launches = [up(port) for _ in range(10)]
        for launch in launches:  # none has seen another one's name by then
            await_line(launch, "waiting for pid ")
    results = ended(launches)

    assert [(code, out) for code, out, _ in results] == [(0, f"a http://127.0.0.1:{port}/v1\n")] * 10, results
    assert sum("a is already up" in errors for _, _, errors in results) == 9
    assert Deployments(state_root()).find("a").news.starts == 1


def test_another_plan_under_the_same_name_is_refused(port: int) -> None:
    results = ended([up(port, f"supervise.liveness_period_s={number % 2 + 5}") for number in range(6)])

    assert sorted(code for code, _, _ in results) == [0, 0, 0, 2, 2, 2], results
    refused = [errors for code, _, errors in results if code == 2]
    assert all("a is up with another plan; --replace drains it and starts this one" in errors for errors in refused)


def test_a_record_that_lacks_what_was_added_since_is_of_the_same_plan(port: int) -> None:
    assert [code for code, _, _ in ended([up(port)])] == [0]
    file = state_root() / "deployments/a/plan.json"
    record = json.loads(file.read_text())
    for part, key in (
        (record["plan"], "inherit"),
        (record["plan"], "container"),
        (record["plan"]["device"], "assumed"),
    ):
        del part[key]
    file.write_text(json.dumps(record))

    ((code, _, errors),) = ended([up(port)])
    assert (code, "a is already up" in errors) == (0, True), errors
    del record["plan"]["probes"]["liveness"]["period_s"]
    file.write_text(json.dumps(record))
    ((code, _, errors),) = ended([up(port)])
    assert (code, "probes.liveness.period_s: null → " in errors) == (2, True), errors


def test_a_variable_that_is_set_to_nothing_is_none_that_is_not_set() -> None:
    assert list(_differences({"env": {}}, {"env": {"CUDA_VISIBLE_DEVICES": ""}}))
    assert list(_differences({"container": {}}, {"container": {"read_only": True}}))
    assert not list(_differences({"container": {}}, {"container": {"read_only": False, "cap_drop": ["ALL"]}}))


def test_keys_that_a_newer_release_writes_are_no_difference_and_a_variable_is_one() -> None:
    assert list(_differences({"replicas": 2, "container": {"seccomp": "x"}}, {"container": {}})) == []
    assert list(_differences({"env": {"A": "1"}}, {"env": {}})) == ['env.A: "1" → null']


def test_of_several_that_replace_one_plan_by_another_one_does(port: int) -> None:
    assert [code for code, _, _ in ended([up(port)])] == [0]
    with held(state_root() / "deployments/a/replacing.lock"):
        launches = [up(port, "supervise.liveness_period_s=7", "--replace") for _ in range(3)]
        for launch in launches:
            await_line(launch, "waiting for pid ")
    results = ended(launches)

    assert [code for code, _, _ in results] == [0, 0, 0], results
    assert sum("stopped: a; nothing is left of it" in errors for _, _, errors in results) == 1, results
    assert sum("a is already up" in errors for _, _, errors in results) == 2, results


def test_who_replaces_for_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.deployments.ledger._LOCK_LIMIT_S", 0.2)
    ledger = Ledger(state_root())
    with (
        held(ledger.deployments / "a/replacing.lock") as other,
        pytest.raises(DeploymentError, match=rf"replacing\.lock has been held for 0\.2 s by pid {other.pid} "),
        ledger.coming_back("a"),
    ):
        pass


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A server that takes connections and answers nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


@pytest.mark.usefixtures("port")
def test_who_waits_for_a_launch_that_fails_says_so() -> None:
    with silent_port() as deaf:
        results = ended([up(deaf, "supervise.startup_timeout_s=8") for _ in range(4)])

    assert [(code, out) for code, out, _ in results] == [(1, "")] * 4, results
    assert sum("a: another launch of it was waited for, and it has ended" in errors for _, _, errors in results) == 3


@pytest.mark.usefixtures("port")
def test_who_waits_for_a_launch_that_is_killed_says_so() -> None:
    with silent_port() as deaf:
        first = up(deaf, "supervise.startup_timeout_s=60")
        wait_for(lambda: phase() is Phase.STARTING, timeout_s=30)
        others = [up(deaf, "supervise.startup_timeout_s=60") for _ in range(2)]
        for other in others:
            await_line(other, "a is STARTING; waiting for pid ")
        supervisor = Deployments(state_root()).find("a").news.supervisor
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)

        results = ended([first, *others])

    assert [(code, out) for code, out, _ in results] == [(1, "")] * 3, results


def phase() -> Phase | None:
    found = {item.name: item for item in Deployments(state_root()).all()}
    return found["a"].news.phase if "a" in found else None
