"""Faults that keep a deployment from serving, and a record on disk that is damaged."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

from launcher.supervise.lifecycle import Phase
from tests.faults import machine
from tests.faults.columns import FAKE
from tests.faults.conftest import Here
from tests.faults.deployment import Deployment, Started
from tests.faults.fault import Cell, fault
from tests.supervision import wait_for

_VERDICT_S = 60.0
_LOOP = 3


@fault("crash loop", must="one that never served: FAILED after max_crashes (3), one sentence of cause, exit 1")
def test_a_crash_loop_ends_in_a_verdict(here: Here, cell: Cell, commands: list[Started]) -> None:
    looping = here.deployment("looping")

    began = time.monotonic()
    commands.append(looping.start("--exit-at-start", "3", detached=True, max_crashes=_LOOP))
    if here.column.real:
        for number in range(1, _LOOP + 1):
            os.kill(looping.starting(number), signal.SIGKILL)
    code, errors = commands[0].finish(_VERDICT_S)
    cell.again_s = time.monotonic() - began

    assert code == 1
    assert ("SIGKILL" if here.column.real else "exited 3") in errors
    status = _status(looping)
    assert (status["state"], status["crashes"], status["starts"]) == ("FAILED", _LOOP, _LOOP)
    assert len(str(status["reason"]).splitlines()) == 1
    _assert_nothing_left(looping, cell)


@fault("port taken", must="refused before anything is started; taken later: FAILED, the port is named as the cause")
def test_a_taken_port_is_told(here: Here, cell: Cell, commands: list[Started]) -> None:
    unlucky = here.deployment("unlucky")

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        # Bound, but nobody listens yet: the launcher finds it free, and the engine does not.
        commands.append(unlucky.start(detached=True, port=port, max_crashes=1))
        wait_for(lambda: (unlucky.folder / "plan.json").exists(), _VERDICT_S)
        other.listen()
        began = time.monotonic()
        code, errors = commands[0].finish(_VERDICT_S)
        cell.again_s = time.monotonic() - began

        assert code == 1, errors
        assert "its port is taken" in errors
        if here.column.real:
            code, errors = here.deployment("refused").start(detached=True, port=port).finish(_VERDICT_S)
            assert code == 2, errors
            assert f"port={port} is in use by pid {os.getpid()}" in errors
    _assert_nothing_left(unlucky, cell)


@fault("memory limit hit", must="FAILED, out of memory is named as the cause")
def test_an_engine_that_needs_more_memory_than_there_is(here: Here, cell: Cell, commands: list[Started]) -> None:
    hungry = here.deployment("hungry")

    if here.daemon:  # Docker makes the control group
        memory = f"runtime.memory={here.column.memory_mb}m"
        began = time.monotonic()
        commands.append(hungry.start(detached=True, max_crashes=1, more=(*here.column.hungry, memory)))
        code, errors = commands[0].finish(_VERDICT_S)
        cell.again_s = time.monotonic() - began

        assert code == 1, errors
        assert "because memory had run out" in str(_status(hungry)["reason"])
        _assert_nothing_left(hungry, cell)
        return
    with machine.limited_memory(here.column.memory_mb) as limit:
        commands.append(hungry.start(detached=True, max_crashes=1, more=here.column.hungry))
        hungry.starting()
        wait_for(lambda: limit.is_hit_by(pid for pid, _ in hungry.processes()), _VERDICT_S)
        began = time.monotonic()
        code, errors = commands[0].finish(_VERDICT_S)
        cell.again_s = time.monotonic() - began

        assert code == 1, errors
        assert "memory" in str(_status(hungry)["reason"])
        _assert_nothing_left(hungry, cell)


@fault("corrupt ledger", must="commands go on and say what is wrong; no other deployment notices; no orphan stays")
def test_a_damaged_record_harms_nobody_else(here: Here, cell: Cell) -> None:
    shared, other = here.shared(), here.deployment("damaged", FAKE)
    pid = shared.news().pid
    code, errors = other.start(detached=True).finish(30)
    assert code == 0, errors

    for name in ("state.json", "plan.json"):
        _truncate(other, name)
        assert _states(shared) == {shared.name: "READY", other.name: "READY"}  # its supervisor knows better
    assert other.is_answering()

    supervisor = other.news().supervisor
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: other.listed() is None)
    _truncate(other, "state.json")
    began = time.monotonic()
    states = _states(shared)
    cell.again_s = time.monotonic() - began

    assert states[shared.name] == "READY"
    assert (shared.news().pid, shared.news().phase) == (pid, Phase.READY)
    shared.prove_it_answers()
    if states[other.name] == "READY":
        assert other.is_answering()
        cell.left = 0
        return
    assert "state.json" in str(_status(other)["reason"])
    _assert_nothing_left(other, cell)


def _truncate(deployment: Deployment, name: str) -> None:
    file = deployment.folder / name
    file.write_bytes(file.read_bytes()[:20])


def _states(deployment: Deployment) -> dict[str, str]:
    listed = deployment.rmlaunch("ps", "--all", "--json")
    assert listed.returncode == 0, listed.stderr
    states = {entry["name"]: entry["state"] for entry in json.loads(listed.stdout)}
    return {name: state for name, state in states.items() if name in (deployment.name, "damaged")}


def _status(deployment: Deployment) -> dict[str, object]:
    status: dict[str, object] = json.loads(deployment.rmlaunch("status", deployment.name, "--json").stdout)
    return status


def _assert_nothing_left(deployment: Deployment, cell: Cell) -> None:
    left = deployment.leftovers([])
    cell.left = len(left)
    assert left == []
