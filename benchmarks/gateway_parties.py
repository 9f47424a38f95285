"""The parties in the gateway's benchmarks: nginx with one answer behind all, nginx and others as proxies, and ours.

wrk and nginx come from Debian (wrk, nginx-light); load stays on loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema import EnvironmentConf
from launcher.paths import cache_root
from launcher.planning.environments import describe
from launcher.prepare.environments import ensure
from launcher.progress import Progress
from tests.supervision import free_port, wait_for

PEERS = {
    "vllm-router": EnvironmentConf(["vllm-router==0.1.17"]),
    "LiteLLM": EnvironmentConf(["litellm[proxy]==1.106.0"]),
    "servers": EnvironmentConf(
        ["aiohttp==3.14.5", "granian==2.8.7", "httptools==0.9.0", "httpx==0.28.1", "uvicorn==0.54.0", "uvloop==0.23.0"]
    ),
}
NGINX = "nginx proxy"
KEY = "the-benchmarks-own-key"

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
upstream u {{ server 127.0.0.1:{first}; server 127.0.0.1:{second}; keepalive {kept}; }}
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


def wrk(party: Party, script: Path, connections: int, seconds: int) -> tuple[float, float, float]:
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


def rates(
    parties: Sequence[Party], script: Path, connections: int, seconds: int, rounds: int
) -> dict[str, list[float]]:
    """Requests per second. In turns, so that a busy moment of the machine hits all."""
    found: dict[str, list[float]] = {party.name: [] for party in parties}
    for _ in range(rounds):
        for party in parties:
            found[party.name].append(wrk(party, script, connections, seconds)[0])
    return found


def script_of(folder: Path) -> Path:
    """Write the script of wrk's requests and return its path. Ends the run where wrk or nginx are not installed."""
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            sys.exit(f"the gateway's benchmarks need {program}: apt-get install wrk nginx-light")
    script = folder / "ask.lua"
    script.write_text(_LUA.format(key=KEY, body=json.dumps(_BODY)))
    return script


@contextlib.contextmanager
def upstreams(folder: Path) -> Iterator[tuple[int, int]]:
    """The ports of one nginx with one answer."""
    first, second = free_port(), free_port()
    answer = json.dumps(_ANSWER)
    with nginx(folder / "canned", "\n".join(_CANNED.format(port=port, answer=answer) for port in (first, second))):
        yield first, second


@contextlib.contextmanager
def nginx_proxy(folder: Path, first: int, second: int, kept: int) -> Iterator[int]:
    """One worker that keeps `kept` idle connections to the servers behind it."""
    port = free_port()
    with nginx(folder / f"proxy-{kept}", _PROXY.format(first=first, second=second, port=port, kept=kept)):
        yield port


@contextlib.contextmanager
def gateways(folder: Path) -> Iterator[list[Party]]:
    with contextlib.ExitStack() as stack:
        first, second = stack.enter_context(upstreams(folder))
        ours = free_port()
        pid = stack.enter_context(our_gateway(folder, ours, [first, second], key=True))
        parties = [Party("direct", first)]
        for name, kept in ((NGINX, 64), ("nginx proxy, keepalive 16 as in its documentation", 16)):
            parties.append(Party(name, stack.enter_context(nginx_proxy(folder, first, second, kept))))
        parties.append(Party("rmlaunch", ours, (pid,)))
        if python := earlier():
            port = free_port()
            stack.enter_context(our_gateway(folder / "before", port, [first, second], key=True, python=python))
            parties.append(Party("rmlaunch before", port))
        for name, start in (("vllm-router", vllm_router), ("LiteLLM", _litellm)):
            port = free_port()
            stack.enter_context(process(start(folder, port, first, second), quiet=True))
            parties.append(Party(name, port))
        for party in parties:
            until_open(party.port, 90)
        yield parties


@contextlib.contextmanager
def nginx(folder: Path, servers: str) -> Iterator[None]:
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, servers=servers))
    with process(["nginx", "-c", str(config), "-e", str(folder / "error.log")]):
        yield


def earlier() -> str | None:
    """Return the Python of another checkout, with an environment of its own, to be measured beside this one.

    The variable BEFORE names its folder; None without it."""
    folder = os.environ.get("BEFORE")
    return f"{folder}/.venv/bin/python" if folder else None


@contextlib.contextmanager
def our_gateway(
    folder: Path,
    port: int,
    upstreams: Sequence[int],
    *,
    key: bool,
    python: str = sys.executable,
    more: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> Iterator[int]:
    """Start the gateway as a user does and yield its pid; `more` are further words, `limits` a prlimit command.

    With `python` it is another checkout's.
    """
    folder.mkdir(exist_ok=True)
    members = ",".join(f"{{url: 'http://127.0.0.1:{number}/v1', model: theirs}}" for number in upstreams)
    keys = [f"gateway.keys.bench={KEY}"] if key else []
    words = ["gateway", "up", f"gateway.port={port}", f"gateway.routes.m.deployments=[{members}]",
             "gateway.routes.m.strategy=round_robin", *keys, *more]  # fmt: skip
    state = folder / "state"
    environment = {**os.environ, "RMLAUNCH_STATE": str(state)}
    program = str(Path(python).with_name("rmlaunch"))  # its module is not the same in every checkout
    with process([*limits, program, *words], environment, quiet=True):
        until_open(port)
        record = state / "deployments" / "gateway" / "state.json"
        wait_for(lambda: record.exists() and json.loads(record.read_text())["state"] == "READY")
        yield int(json.loads(record.read_text())["pid"])


def vllm_router(_: Path, port: int, first: int, second: int) -> list[str]:
    urls = [f"http://127.0.0.1:{number}" for number in (first, second)]
    return [f"{environment('vllm-router')}/bin/vllm-router", "--host", "127.0.0.1", "--port", str(port),
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
        f"{environment('LiteLLM')}/bin/litellm",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--config",
        str(config),
    ]


def environment(peer: str) -> str:
    made = describe(f"benchmark-{peer.lower()}", "managed", PEERS[peer], cache_root())
    ensure(made, Progress(quiet=True))
    return made.path


@contextlib.contextmanager
def process(command: Sequence[str], env: dict[str, str] | None = None, *, quiet: bool = False) -> Iterator[None]:
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


def until_open(port: int, timeout_s: float = 20.0) -> None:
    def is_open() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_for(is_open, timeout_s)
