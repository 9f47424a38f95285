"""The gateway beside nginx as a proxy, vllm-router and LiteLLM: the same requests, the same canned upstream, one run.

    python -m benchmarks.gateway

The upstream is nginx with one answer; for streams, a server of the tests that waits between its pieces. Ours routes
over two replicas, with a key and its numbers on. wrk and nginx come from Debian (wrk, nginx-light); load stays on
loopback.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import uvloop

from benchmarks.gateway_parties import NGINX, Party, gateways, our_gateway, process, rates, script_of, until_open, wrk
from benchmarks.table import percentile, show
from tests.supervision import free_port

#: many short turns: what else the machine does changes from one to the next
CONNECTIONS, SECONDS, TURNS = 32, 3, 11
ALONE_SECONDS = 3
ROUNDS = 3
STREAMS, PIECES, PAUSE_S, BEGIN_S = 100, 200, 0.02, 1.0
#: as many as a busy hour has: 60 requests per second
HOUR = 216_000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        script = script_of(folder := Path(name))
        _beside_others(folder, script)
    _streams()


def _beside_others(folder: Path, script: Path) -> None:
    with gateways(folder) as parties:
        _throughput(parties, script)
        _alone(parties, script)
        _memory(next(party for party in parties if party.name == "rmlaunch"), script)


# ------------------------------------------------------------------------------------------------------ the numbers


def _throughput(parties: Sequence[Party], script: Path) -> None:
    found = rates(parties, script, CONNECTIONS, SECONDS, TURNS)
    nginx = statistics.median(found[NGINX])
    rows = [
        [name, f"{statistics.median(each):,.0f}", f"{min(each):,.0f} – {max(each):,.0f}",
         f"{statistics.median(each) / nginx:.2f}"]
        for name, each in found.items()
    ]  # fmt: skip
    show(f"Gateway: {CONNECTIONS} connections, whole answers, median of {TURNS} × {SECONDS} s",
         ["", "requests/s", "range", "against nginx (at least 0.75)"], rows)  # fmt: skip


def _alone(parties: Sequence[Party], script: Path) -> None:
    found: dict[str, list[float]] = {party.name: [] for party in parties}
    for _ in range(ROUNDS):
        for party in parties:
            found[party.name].append(wrk(party, script, 1, ALONE_SECONDS)[1])
    direct = statistics.median(found["direct"])
    rows = [
        [name, f"{statistics.median(times):.3f}", f"{statistics.median(times) - direct:.3f}"]
        for name, times in found.items()
    ]
    show("Gateway: 1 connection", ["", "p50 ms", "added (at most 0.3)"], rows)


def _memory(ours: Party, script: Path) -> None:
    """Resident memory while an hour's worth of requests goes through."""
    (pid,) = ours.pids
    gateway = psutil.Process(pid)
    sizes, asked, began = [gateway.memory_info().rss], 0, time.monotonic()
    while asked < HOUR and time.monotonic() - began < 120:
        asked += int(wrk(ours, script, CONNECTIONS, 3)[2])
        sizes.append(gateway.memory_info().rss)
    later = sizes[len(sizes) // 2 :]
    row = [f"{asked:,}", *(f"{size / 2**20:.1f}" for size in (sizes[0], later[0], later[-1], max(sizes)))]
    show("Gateway: resident memory, MiB (at most 80)", ["requests", "before", "half-way", "at the end", "most"], [row])


def _streams() -> None:
    """Direct and through the gateway, at the same time's length, in turns."""
    upstream, port = free_port(), free_port()
    with (
        process([sys.executable, "-m", "tests.fakes.openai_server", "--port", str(upstream)]),
        tempfile.TemporaryDirectory() as folder,
        our_gateway(Path(folder), port, [upstream], key=False),
    ):
        until_open(upstream)
        whole: dict[str, list[float]] = {"direct": [], "rmlaunch": []}
        first: dict[str, list[float]] = {"direct": [], "rmlaunch": []}
        for _ in range(ROUNDS):
            for name, where in (("direct", upstream), ("rmlaunch", port)):
                times = uvloop.run(_many(where))
                first[name] += [one for one, _ in times]
                whole[name] += [all_ for _, all_ in times]
    slowest = max(whole["direct"])
    rows = [
        [name, f"{percentile(first[name], 0.5) * 1000:.2f}", f"{percentile(whole[name], 0.5):.3f}",
         f"{max(whole[name]):.3f}", f"{max(whole[name]) / slowest:.3f}"]
        for name in whole
    ]  # fmt: skip
    added = (percentile(first["rmlaunch"], 0.5) - percentile(first["direct"], 0.5)) * 1000
    show(f"Gateway: {STREAMS} streams of {PIECES} pieces at the same time, {PAUSE_S * 1000:.0f} ms apart",
         ["", f"first byte p50 ms (added {added:.2f}, at most 2)", "whole p50 s", "slowest s", "slowest (at most 1.1)"],
         rows)  # fmt: skip


async def _many(port: int) -> list[tuple[float, float]]:
    # One after the other, and all of them at work by then: a hundred in one moment would measure something else.
    return list(await asyncio.gather(*(_stream(port, number * BEGIN_S / STREAMS) for number in range(STREAMS))))


async def _stream(port: int, after_s: float) -> tuple[float, float]:
    """Seconds from the request to its first piece, and to its end."""
    await asyncio.sleep(after_s)
    text = f"slow {PAUSE_S} pieces {PIECES}"
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                 b"content-length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - began
    await reader.readuntil(b"[DONE]")
    whole = time.perf_counter() - began
    writer.close()
    return first, whole


if __name__ == "__main__":
    main()
