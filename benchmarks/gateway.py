"""The gateway beside nginx as a proxy, vllm-router and LiteLLM: the same requests, the same canned upstream, one run.

    python -m benchmarks.gateway

The upstream is nginx with one answer; of streams, a server of the tests that waits between its pieces. Ours has routing
over two replicas, a key and its numbers on. wrk and nginx come from Debian (wrk, nginx-light); load stays on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks.table import percentile, show
from launcher.environments import describe, ensure
from launcher.paths import cache_root
from launcher.progress import Progress
from launcher.schema import EnvironmentConf
from tests.supervision import free_port, wait_for

PEERS = {
    "vllm-router": EnvironmentConf(["vllm-router==0.1.17"]),
    "LiteLLM": EnvironmentConf(["litellm[proxy]==1.106.0"]),
}
KEY = "the-benchmarks-own-key"
CONNECTIONS, SECONDS, ROUNDS = 32, 8, 3
ALONE_SECONDS = 4
STREAMS, PIECES, PAUSE_S, BEGIN_S = 100, 200, 0.02, 1.0
#: as many as a busy hour has: 60 requests per second
HOUR = 216_000

_ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "theirs",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "The capital of France is Paris."},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24},
}  # fmt: skip
_BODY = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24}

_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 100000000;
  {servers}
}}
"""
_CANNED = "server {{ listen 127.0.0.1:{port}; default_type application/json; location / {{ return 200 '{answer}'; }} }}"
_PROXY = """
upstream u {{ server 127.0.0.1:{first}; server 127.0.0.1:{second}; keepalive 64; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://u; proxy_http_version 1.1;
  proxy_set_header Connection ""; }} }}
"""
_LUA = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""


@dataclass(frozen=True, slots=True)
class Party:
    name: str
    port: int
    pids: tuple[int, ...] = ()


def main() -> None:
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            sys.exit(f"the gateway's benchmark needs {program}: apt-get install wrk nginx-light")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parties = stack.enter_context(_parties(folder))
        script = folder / "ask.lua"
        script.write_text(_LUA.format(key=KEY, body=json.dumps(_BODY)))
        _throughput(parties, script)
        _alone(parties, script)
        _memory(next(party for party in parties if party.name == "rmlaunch"), script)
    _streams()


# ------------------------------------------------------------------------------------------------------ the numbers


def _throughput(parties: Sequence[Party], script: Path) -> None:
    """In turns, so that a busy moment of the machine hits all."""
    found: dict[str, list[float]] = {party.name: [] for party in parties}
    for _ in range(ROUNDS):
        for party in parties:
            found[party.name].append(_wrk(party, script, CONNECTIONS, SECONDS)[0])
    nginx = statistics.median(found["nginx proxy"])
    rows = [
        [name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} – {max(rates):,.0f}",
         f"{statistics.median(rates) / nginx:.2f}"]
        for name, rates in found.items()
    ]  # fmt: skip
    show(f"Gateway: {CONNECTIONS} connections, whole answers, median of {ROUNDS} × {SECONDS} s",
         ["", "requests/s", "range", "against nginx (at least 0.75)"], rows)  # fmt: skip


def _alone(parties: Sequence[Party], script: Path) -> None:
    found: dict[str, list[float]] = {party.name: [] for party in parties}
    for _ in range(ROUNDS):
        for party in parties:
            found[party.name].append(_wrk(party, script, 1, ALONE_SECONDS)[1])
    direct = statistics.median(found["direct"])
    rows = [
        [name, f"{statistics.median(times):.3f}", f"{statistics.median(times) - direct:.3f}"]
        for name, times in found.items()
    ]
    show("Gateway: 1 connection", ["", "p50 ms", "added (at most 0.3)"], rows)


def _memory(ours: Party, script: Path) -> None:
    """Resident memory while an hour's worth of requests goes through."""
    (pid,) = ours.pids
    process = psutil.Process(pid)
    sizes, asked, began = [process.memory_info().rss], 0, time.monotonic()
    while asked < HOUR and time.monotonic() - began < 120:
        asked += int(_wrk(ours, script, CONNECTIONS, 3)[2])
        sizes.append(process.memory_info().rss)
    later = sizes[len(sizes) // 2 :]
    row = [f"{asked:,}", *(f"{size / 2**20:.1f}" for size in (sizes[0], later[0], later[-1], max(sizes)))]
    show("Gateway: resident memory, MiB (at most 80)", ["requests", "before", "half-way", "at the end", "most"], [row])


def _streams() -> None:
    """Direct and through the gateway, at the same time's length, in turns."""
    upstream, port = free_port(), free_port()
    with (
        _process([sys.executable, "-m", "tests.fakes.openai_server", "--port", str(upstream)]),
        tempfile.TemporaryDirectory() as folder,
        _gateway(Path(folder), port, [upstream], key=False),
    ):
        _until_open(upstream)
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


def _wrk(party: Party, script: Path, connections: int, seconds: int) -> tuple[float, float, float]:
    """Requests per second, the median latency in ms, and how many requests. Raises where any was not answered 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s", str(script),
               f"http://127.0.0.1:{party.port}"]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{party.name}: {said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", said)
    count = re.search(r"(\d+) requests in", said)
    assert rate
    assert half
    assert count
    return float(rate[1]), float(half[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[half[2]], float(count[1])


# ------------------------------------------------------------------------------------------------------- the parties


@contextlib.contextmanager
def _parties(folder: Path) -> Iterator[list[Party]]:
    first, second, proxy, ours = (free_port() for _ in range(4))
    with contextlib.ExitStack() as stack:
        answer = json.dumps(_ANSWER)
        canned = "\n".join(_CANNED.format(port=port, answer=answer) for port in (first, second))
        stack.enter_context(_nginx(folder / "canned", canned))
        stack.enter_context(_nginx(folder / "proxy", _PROXY.format(first=first, second=second, port=proxy)))
        pid = stack.enter_context(_gateway(folder, ours, [first, second], key=True))
        parties = [Party("direct", first), Party("nginx proxy", proxy), Party("rmlaunch", ours, (pid,))]
        for name, start in (("vllm-router", _vllm_router), ("LiteLLM", _litellm)):
            port = free_port()
            stack.enter_context(_process(start(folder, port, first, second), quiet=True))
            parties.append(Party(name, port))
        for party in parties:
            _until_open(party.port, 90)
        yield parties


@contextlib.contextmanager
def _nginx(folder: Path, servers: str) -> Iterator[None]:
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, servers=servers))
    with _process(["nginx", "-c", str(config), "-e", str(folder / "error.log")]):
        yield


@contextlib.contextmanager
def _gateway(folder: Path, port: int, upstreams: Sequence[int], *, key: bool) -> Iterator[int]:
    """As a user starts it; its process."""
    members = ",".join(f"{{url: 'http://127.0.0.1:{number}/v1', model: theirs}}" for number in upstreams)
    words = ["gateway", "up", f"gateway.port={port}", f"gateway.routes.m.deployments=[{members}]",
             "gateway.routes.m.strategy=round_robin", *([f"gateway.keys.bench={KEY}"] if key else [])]  # fmt: skip
    state = folder / "state"
    environment = {**os.environ, "RMLAUNCH_STATE": str(state)}
    with _process([sys.executable, "-m", "launcher.cli", *words], environment, quiet=True):
        _until_open(port)
        record = state / "deployments" / "gateway" / "state.json"
        wait_for(lambda: record.exists() and json.loads(record.read_text())["state"] == "READY")
        yield int(json.loads(record.read_text())["pid"])


def _vllm_router(_: Path, port: int, first: int, second: int) -> list[str]:
    urls = [f"http://127.0.0.1:{number}" for number in (first, second)]
    return [f"{_environment('vllm-router')}/bin/vllm-router", "--host", "127.0.0.1", "--port", str(port),
            "--prometheus-port", str(free_port()), "--policy", "round_robin", "--worker-urls", *urls]  # fmt: skip


def _litellm(folder: Path, port: int, first: int, second: int) -> list[str]:
    models = [
        {"model_name": "m", "litellm_params": {"model": "openai/theirs", "api_key": "none",
                                               "api_base": f"http://127.0.0.1:{number}/v1"}}
        for number in (first, second)
    ]  # fmt: skip
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
    return [
        f"{_environment('LiteLLM')}/bin/litellm",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--config",
        str(config),
    ]


def _environment(peer: str) -> str:
    made = describe(f"benchmark-{peer.lower()}", "managed", PEERS[peer], cache_root())
    ensure(made, Progress(quiet=True))
    return made.path


@contextlib.contextmanager
def _process(command: Sequence[str], env: dict[str, str] | None = None, *, quiet: bool = False) -> Iterator[None]:
    output = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _until_open(port: int, timeout_s: float = 20.0) -> None:
    def is_open() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_for(is_open, timeout_s)


if __name__ == "__main__":
    main()
