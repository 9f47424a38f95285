"""Tokens per second of eight concurrent requests through our client: vLLM beside Transformers, on this CPU."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.table import show
from engines.base import GenerateRequest, Sampling
from launcher import launch
from launcher.progress import Progress
from launcher.serving.engine import ServingEngine

CONCURRENCY, REQUESTS, TOKENS = 8, 24, 48
SERVERS = {
    "vllm": ("engine=vllm",),
    "transformers": ("engine=transformers",),
    "transformers, continuous batching": ("engine=transformers", "engine.continuous_batching=true"),
}


def main() -> None:
    rates = {}
    for name, words in SERVERS.items():
        with launch(*words, "device=cpu", "model=smollm2", progress=Progress()) as engine:
            rates[name] = _tokens_per_s(engine)
    peer = rates["transformers"]
    rows = [[name, f"{rate:.0f}", f"{rate / peer:.2f}"] for name, rate in rates.items()]
    show(f"{CONCURRENCY} concurrent requests, {TOKENS} tokens each", ["", "tokens/s", "against Transformers"], rows)


def _tokens_per_s(engine: ServingEngine) -> float:
    def ask(number: int) -> int:
        message = {"role": "user", "content": f"Tell me a story about the number {number}."}
        request = GenerateRequest(messages=(message,), sampling=Sampling(max_tokens=TOKENS), usage=True)
        return sum(chunk.completion_tokens or 0 for chunk in engine.chunks(request))

    ask(0)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        began = time.monotonic()
        tokens = sum(pool.map(ask, range(1, REQUESTS + 1)))
        return tokens / (time.monotonic() - began)
