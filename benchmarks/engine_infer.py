"""`engine.infer` beside `requests` used by hand against the same OpenAI server, one token each, p50."""

from __future__ import annotations

import time
from collections.abc import Callable

import requests

from benchmarks.table import percentile, show
from launcher import launch
from launcher.progress import Progress
from launcher.serving.engine import ServingEngine

#: requests of each kind; the servers differ by a factor of ten
ROUNDS = {"llamacpp": 400, "vllm": 150, "transformers": 100, "torchserve": 100}
WARM_UP = 10


def main() -> None:
    rows = []
    for name, rounds in ROUNDS.items():
        with launch(f"engine={name}", "device=cpu", "model=smollm2", progress=Progress()) as engine:
            raw, ours = compare(engine, rounds)
        rows.append([name, f"{raw:.2f}", f"{ours:.2f}", f"{ours / raw:.3f}"])
    show("infer, one token", ["", "requests by hand, p50 ms", "engine.infer, p50 ms", "ratio (at most 1.03)"], rows)


def compare(engine: ServingEngine, rounds: int) -> tuple[float, float]:
    raw = _by_hand(engine)
    asks: list[Callable[[], object]] = [raw, lambda: engine.infer("One, two, three,", max_tokens=1)]
    times: list[list[float]] = [[], []]
    for number in range(WARM_UP + rounds):
        # In turns and each first every other time: a busy moment of the machine hits both.
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter_ns()
            asks[which]()
            if number >= WARM_UP:
                times[which].append((time.perf_counter_ns() - began) / 1e6)
    return percentile(times[0], 0.5), percentile(times[1], 0.5)


def _by_hand(engine: ServingEngine) -> Callable[[], str]:
    """Return what a careful user writes: the readiness probe's own kind of request, over a kept connection."""
    session = requests.Session()
    session.trust_env = False
    check = engine.plan.probes.readiness
    url = f"{engine.plan.endpoints.http.url}{check.path}"
    body = {**(check.body or {})}
    body |= (
        {"messages": [{"role": "user", "content": "One, two, three,"}]}
        if "messages" in body
        else {"prompt": "One, two, three,"}
    )
    headers = {"Authorization": f"Bearer {engine.plan.key.read()}"} if engine.plan.key else {}

    def ask() -> str:
        answer = session.post(url, json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["choices"])

    return ask
