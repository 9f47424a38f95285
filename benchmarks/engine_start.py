"""Seconds until each engine has answered a real request: launched by us, and the same server started by hand.

By hand means the plan's own command line, files and variables, without a supervisor, and a loop that asks every 10 ms.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import show
from engines.base import LaunchPlan
from launcher import launch, registry
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.prepare.steps import prepare_model, render_files
from launcher.progress import Progress
from launcher.supervise import probes

#: the engines of this CPU, and how often each is started both ways
ROUNDS = {"llamacpp": 5, "triton": 5, "torchserve": 3, "transformers": 5, "vllm": 4}


def main() -> None:
    rows = []
    for engine, rounds in ROUNDS.items():
        words = (f"engine={engine}", "device=cpu", "model=smollm2")
        with launch(*words, progress=Progress()):
            pass  # the environment, the model and the disk's cache
        rows.append([engine, *best_of(rounds, words, _by_hand_s)])
    head = ["", "by hand s", "rmlaunch s", "at most s (1.03 × + 0.3)", "ratio"]
    show("Start → a real request answered, the best of each", head, rows)


def best_of(rounds: int, words: tuple[str, ...], by_hand_s: Callable[[tuple[str, ...]], float]) -> list[str]:
    """By hand, by rmlaunch, the limit and the ratio, of starts in turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(by_hand_s(words))
        ours.append(_launched_s(words))
    hand, launched = min(theirs), min(ours)
    return [f"{hand:.2f}", f"{launched:.2f}", f"{1.03 * hand + 0.3:.2f}", f"{launched / hand:.3f}"]


def _launched_s(words: tuple[str, ...]) -> float:
    engine = launch(*words)
    began = time.monotonic()
    with engine:
        return time.monotonic() - began


def _by_hand_s(words: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory(prefix="rml-") as folder:
        plan = plan_in(words, Path(folder))
        render_files(plan.files, plan.links, Path(plan.run_dir))
        prepare_model(plan, Progress(quiet=True))
        env = {**os.environ, **plan.env, "TMPDIR": folder}
        began = time.monotonic()
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(
                plan.argv, env=env, cwd=plan.run_dir, stdout=log, stderr=log, start_new_session=True
            )
        try:
            return until_answered_s(plan, began, lambda: server.poll() is not None)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(15)


def until_answered_s(plan: LaunchPlan, began: float, has_ended: Callable[[], bool] = lambda: False) -> float:
    """Seconds from `began` until the server of `plan` has answered its readiness request, asked every 10 ms."""
    door = probes.Door(plan.endpoints.http, key=plan.key)
    for check in (plan.probes.startup, plan.probes.readiness):
        while probes.check(door, check, 30):
            if has_ended():
                raise RuntimeError(f"{plan.name} ended by itself")
            time.sleep(0.01)
    return time.monotonic() - began


def plan_in(words: tuple[str, ...], folder: Path) -> LaunchPlan:
    config = settle(words, this_machine()).config
    engine, spec = resolve(config, Machine(Ledger(folder / "state"), launches=True))
    return registry.engine(engine.name).plan(dataclasses.replace(spec, run_dir=str(folder / "run")))
