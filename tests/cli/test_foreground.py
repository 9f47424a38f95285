"""The command in the foreground, over a real llama.cpp: answers, reports, signals, and what is left afterwards."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.supervision import marked_processes, wait_for

# The first start makes an environment and fetches the model.
pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

QUESTION = "prompt=What is the capital of France?"


def test_a_prompt_is_answered_on_stdout_and_nothing_else(tmp_path: Path) -> None:
    done = _run("engine=llamacpp", "device=cpu", QUESTION, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is Paris.\n"
    assert re.search(r"took: .*start \d+\.\d s, answer \d+\.\d s", done.stderr)
    assert list(tmp_path.glob("outputs")) == []


def test_auto_says_what_it_chose_and_why(tmp_path: Path) -> None:
    done = _run("engine=auto", "device=auto", QUESTION, "sampling.max_tokens=1", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "device=auto → cpu" in done.stderr
    assert "engine=auto → llamacpp (reads gguf on cpu; " in done.stderr


def test_a_sweep_reports_every_combination_and_survives_one_that_fails(tmp_path: Path) -> None:
    done = _run("-m", "engine=llamacpp", "device=cpu,rbln", QUESTION, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (report,) = tmp_path.glob("multirun/*/*/report.json")
    good, bad = json.loads(report.read_text())
    assert (good["ok"], good["engine"], good["answer"]) == (True, "llamacpp", "The capital of France is Paris.")
    assert good["ready_s"] > 0
    assert good["first_token_s"] > 0
    assert good["tokens_per_s"] > 1
    assert good["peak_memory_mb"] > 100
    assert bad["ok"] is False
    assert "engine=llamacpp cannot use device=rbln" in bad["error"]
    with (report.parent / "report.csv").open(newline="") as stream:
        assert [row["ok"] for row in csv.DictReader(stream)] == ["True", "False"]
    assert "Paris" in done.stdout
    assert "FAILED" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_drains_and_stops(number: signal.Signals, tmp_path: Path) -> None:
    with _serving(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert "nothing is left of it" in errors
    assert marked_processes(_run_dir(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_kills(number: signal.Signals, tmp_path: Path) -> None:
    with _serving(tmp_path, "supervise.stop_grace_s=600") as process:
        state = _folder(tmp_path) / "state.json"
        os.kill(json.loads(state.read_text())["pid"], signal.SIGSTOP)  # deaf to the first one
        process.send_signal(number)
        wait_for(lambda: json.loads(state.read_text())["state"] == "STOPPING", timeout_s=10)
        began = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)

    assert time.monotonic() - began < 5
    assert process.returncode == 0, errors
    assert marked_processes(_run_dir(tmp_path)) == []


def test_a_signal_while_it_starts_ends_it(tmp_path: Path) -> None:
    with _started(tmp_path) as process:
        wait_for(lambda: marked_processes(_run_dir(tmp_path)) != [], timeout_s=120)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert marked_processes(_run_dir(tmp_path)) == []


def test_a_killed_launcher_leaves_nothing(tmp_path: Path) -> None:
    with _serving(tmp_path) as process:
        assert marked_processes(_run_dir(tmp_path)) != []
        process.kill()

        wait_for(lambda: marked_processes(_run_dir(tmp_path)) == [], timeout_s=2)


def test_an_engine_that_is_killed_serves_again_on_the_same_address(tmp_path: Path) -> None:
    with _serving(tmp_path) as process:
        plan = json.loads((_folder(tmp_path) / "plan.json").read_text())["plan"]
        state = _folder(tmp_path) / "state.json"
        os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
        wait_for(lambda: json.loads(state.read_text())["starts"] == 2, timeout_s=10)
        wait_for(lambda: json.loads(state.read_text())["state"] == "READY", timeout_s=60)

        with urllib.request.urlopen(f"{plan['endpoints']['http']}/health", timeout=5) as answer:  # noqa: S310
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert "SIGKILL" in errors


def test_a_model_that_is_damaged_is_told_in_one_message(tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF" + bytes(64))

    done = _run("engine=llamacpp", "device=cpu", f"model.source=file:{model}", "prompt=hello", cwd=tmp_path)

    assert done.returncode == 1
    assert "the model's file cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def _run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)


@contextmanager
def _started(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "launcher", "engine=llamacpp", "device=cpu", "name=here", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextmanager
def _serving(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    with _started(tmp_path, *words) as process:
        assert process.stderr is not None
        line = ""
        while not line.startswith("ready: "):
            line = process.stderr.readline()
            assert line, "it ended before it was ready"
        yield process


def _folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "deployments" / "here"


def _run_dir(tmp_path: Path) -> str:
    return str(_folder(tmp_path) / "run")
