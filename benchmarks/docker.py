"""runtime=docker beside `docker run` by hand: seconds until a real request was answered, and `engine.infer`.

By hand means the very command that `rmlaunch plan … --as docker-run` prints, and a loop that asks every 10 ms.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import engine_infer
from benchmarks.engine_start import best_of, plan_in, until_answered_s
from benchmarks.table import show
from launcher import launch
from launcher.prepare.steps import prepare
from launcher.progress import Progress
from launcher.runtimes import docker_request
from tests import dockerd

#: how often each engine is started both ways
ROUNDS = {"llamacpp": 5, "triton": 5}
INFER_ROUNDS = 400


def main() -> None:
    with dockerd.running() as daemon:
        os.environ["DOCKER_HOST"] = daemon.host
        try:
            _starts()
            _infer()
        finally:
            del os.environ["DOCKER_HOST"]


def _words(engine: str) -> tuple[str, ...]:
    return (f"engine={engine}", "device=cpu", "model=smollm2", "runtime=docker", f"runtime.base={dockerd.BASE}")


def _starts() -> None:
    rows = []
    for engine, rounds in ROUNDS.items():
        with launch(*_words(engine), progress=Progress()):
            pass  # the image, the model and the disk's cache
        rows.append([engine, *best_of(rounds, _words(engine), _by_hand_s)])
    head = ["", "docker run s", "rmlaunch s", "at most s (1.03 × + 0.3)", "ratio"]
    show("runtime=docker: start → a real request answered, the best of each", head, rows)


def _by_hand_s(words: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory(prefix="rml-") as folder:
        plan = plan_in(words, Path(folder))
        assert plan.container is not None
        prepare(plan, Progress(quiet=True))
        began = time.monotonic()
        subprocess.run(docker_request.docker_run(plan), check=True, capture_output=True)
        try:
            return until_answered_s(plan, began)
        finally:
            subprocess.run(["docker", "rm", "--force", plan.container.name], check=True, capture_output=True)  # noqa: S607


def _infer() -> None:
    rows = []
    with launch(*_words("llamacpp"), progress=Progress()) as engine:
        raw, ours = engine_infer.compare(engine, INFER_ROUNDS)
    rows.append(["llamacpp", f"{raw:.2f}", f"{ours:.2f}", f"{ours / raw:.3f}"])
    head = ["", "requests by hand, p50 ms", "engine.infer, p50 ms", "ratio (at most 1.03)"]
    show("runtime=docker: infer, one token", head, rows)


if __name__ == "__main__":
    main()
