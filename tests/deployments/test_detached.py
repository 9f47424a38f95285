"""`up -d` and the verbs that follow it, as a user types them: a real llama.cpp, processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.supervision import is_alive, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rmlaunch(tmp_path: Path) -> Iterator[Run]:
    def run(*words: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", *words]
        done = subprocess.run(command, cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done

    yield run
    run("stop", "--all", "--now")


def status(rmlaunch: Run, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(rmlaunch("status", name, "--json").stdout)
    return data


def test_two_deployments_live_side_by_side_and_are_asked_by_name(rmlaunch: Run) -> None:
    first = rmlaunch("up", "-d", "engine=llamacpp", "name=a").stdout.split()
    second = json.loads(rmlaunch("up", "-d", "engine=llamacpp", "device=cpu", "--json").stdout)

    assert first[0] == "a"
    assert second["name"] == "llamacpp-cpu-smollm2"
    assert first[1] != second["endpoint"]
    listed = {item["name"]: item for item in json.loads(rmlaunch("ps", "--json").stdout)}
    assert {name: item["state"] for name, item in listed.items()} == {"a": "READY", second["name"]: "READY"}
    assert [line.split()[:3] for line in rmlaunch("ps").stdout.splitlines()[1:]] == [
        ["a", "READY", "llamacpp"],
        [second["name"], "READY", "llamacpp"],
    ]
    assert "Paris" in rmlaunch("infer", "a", "The capital of France is", "max_tokens=8").stdout
    chat = rmlaunch("chat", second["name"], stdin="What is the capital of France?\n\nAnd of Italy?\n").stdout
    assert "The capital of France is Paris." in chat
    assert "Rome" in chat
    assert rmlaunch("logs", "a", "-n", "3").stdout.count("\n") == 3
    assert 'rmlaunch_state{deployment="a",state="READY"} 1' in rmlaunch("metrics", "a").stdout

    assert rmlaunch("stop", "--all").stderr.count("nothing is left of it") == 2
    assert rmlaunch("ps").stdout.count("\n") == 1
    assert {item["state"] for item in json.loads(rmlaunch("ps", "--all", "--json").stdout)} == {"STOPPED"}


def test_the_same_name_is_up_already_or_is_replaced(rmlaunch: Run) -> None:
    rmlaunch("up", "-d", "engine=llamacpp", "name=a")
    pid = status(rmlaunch, "a")["pid"]

    assert "a is already up" in rmlaunch("up", "-d", "engine=llamacpp", "name=a").stderr
    refused = rmlaunch("up", "-d", "engine=llamacpp", "name=a", "model.context_length=1024", code=2).stderr
    assert "a is up with another plan; --replace drains it and starts this one. It differs in:" in refused
    assert '"2048" → "1024"' in refused
    assert status(rmlaunch, "a")["pid"] == pid

    rmlaunch("up", "-d", "engine=llamacpp", "name=a", "model.context_length=1024", "--replace")
    assert status(rmlaunch, "a")["pid"] != pid
    assert not is_alive(pid)


def test_a_killed_supervisor_is_replaced_by_the_next_command_and_nothing_is_loaded_anew(rmlaunch: Run) -> None:
    rmlaunch("up", "-d", "engine=llamacpp", "name=c")
    before = status(rmlaunch, "c")
    os.kill(before["supervisor"], signal.SIGKILL)

    assert rmlaunch("ps").stdout.splitlines()[1].split()[:2] == ["c", "READY"]

    after = status(rmlaunch, "c")
    assert (after["pid"], after["starts"]) == (before["pid"], 1)
    assert after["supervisor"] != before["supervisor"]
    assert rmlaunch("infer", "c", "One, two,", "max_tokens=4").stdout.strip()

    rmlaunch("restart", "c")
    restarted = status(rmlaunch, "c")
    assert (restarted["starts"], restarted["crashes"]) == (2, 0)
    assert not is_alive(before["pid"])


def test_a_log_is_followed_over_a_restart_to_the_end(rmlaunch: Run, tmp_path: Path) -> None:
    rmlaunch("up", "-d", "engine=llamacpp", "name=a")
    with (tmp_path / "followed").open("wb") as output:
        follower = subprocess.Popen([sys.executable, "-m", "launcher", "logs", "a", "-f"], stdout=output)
    try:
        first = status(rmlaunch, "a")["log"]
        rmlaunch("restart", "a")
        second = status(rmlaunch, "a")["log"]
        assert first != second
        last = Path(second).read_bytes().splitlines()[-1]
        wait_for(lambda: last in (tmp_path / "followed").read_bytes(), timeout_s=30)
        rmlaunch("stop", "a")
        assert follower.wait(30) == 0
    finally:
        follower.kill()
        follower.wait()


def test_what_never_serves_is_an_error_and_leaves_nothing(rmlaunch: Run) -> None:
    failed = rmlaunch("up", "-d", "engine=llamacpp", "name=a", "engine.args.nonsense=1", code=1).stderr

    assert "it does not know one of its flags" in failed
    assert [line.split()[:2] for line in rmlaunch("ps").stdout.splitlines()[1:]] == [["a", "FAILED"]]
    assert "a is FAILED, not running" in rmlaunch("infer", "a", "x", code=2).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop"], "name what to stop: rmlaunch stop NAME …"),
        (["kill"], "name what to kill: rmlaunch kill NAME …"),
        (["stop", "nobody"], "deployment 'nobody' not found"),
        (["status"], "the following arguments are required: NAME"),
        (["logs", "x", "-n", "many"], "-n/--lines: invalid int value: 'many'"),
        (["ps", "--jsonn"], "unknown flag '--jsonn'; did you mean '--json'?"),
        (["up", "-d", "engine=llamacpp", "prompt=x"], "prompt= asks once and stops"),
    ],
)
def test_a_wrong_word_is_told(rmlaunch: Run, words: list[str], said: str) -> None:
    assert said in rmlaunch(*words, code=2).stderr
