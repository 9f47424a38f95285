"""The libraries that the gateway could stand on: the same small proxy on each candidate, in one run.

    python -m benchmarks.gateway_servers

One process of each stands in front of the same nginx with one answer. `candidates.py` has the proxies.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path

from benchmarks import candidates
from benchmarks.gateway_parties import (
    Party,
    environment,
    nginx_proxy,
    process,
    rates,
    script_of,
    until_open,
    upstreams,
    vllm_router,
)
from benchmarks.table import show
from tests.supervision import free_port

CONNECTIONS, SECONDS, ROUNDS = 32, 4, 3

CANDIDATES = {
    "protocols": "asyncio protocols + httptools + uvloop, both sides",
    "uvicorn": "uvicorn (httptools, uvloop) + aiohttp's client",
    "granian": "granian (Rust, ASGI, uvloop) + aiohttp's client",
    "aiohttp": "aiohttp's server and client (uvloop)",
    "uvicorn-httpx": "uvicorn (httptools, uvloop) + httpx",
}


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = script_of(folder)
        first, second = stack.enter_context(upstreams(folder))
        parties = [Party("nginx as a proxy", stack.enter_context(nginx_proxy(folder, first, second, 64)))]
        python = f"{environment('servers')}/bin/python"
        for kind, name in CANDIDATES.items():
            parties.append(Party(name, port := free_port()))
            command = [python, candidates.__file__, kind, str(port), str(first)]
            stack.enter_context(process(command, quiet=True))
        parties.append(Party("vllm-router (Rust, from PyPI)", port := free_port()))
        stack.enter_context(process(vllm_router(folder, port, first, second), quiet=True))
        for party in parties:
            until_open(party.port, 90)
        found = rates(parties, script, CONNECTIONS, SECONDS, ROUNDS)
    rows = [
        [name, f"{statistics.median(each):,.0f}", f"{min(each):,.0f} – {max(each):,.0f}"]
        for name, each in found.items()
    ]
    show(f"Gateway: what it could stand on, {CONNECTIONS} connections, median of {ROUNDS} × {SECONDS} s",
         ["a proxy that parses the body", "requests/s", "range"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
