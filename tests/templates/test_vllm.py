"""What starts vLLM on a CPU, and what guards its paths: without vLLM."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "templates/vllm"
KEYED = [(b"authorization", b"Bearer sesame")]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """What an application behind the guard, which answers everything with 200, sends for a request."""
    monkeypatch.setenv("VLLM_API_KEY", "sesame")

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guarded = runpy.run_path(str(FOLDER / "guard.py"))["RequireKey"](application)

    def answer(path: str, headers: Any = (), method: str = "POST", kind: str = "http") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(guarded({"type": kind, "path": path, "headers": headers, "method": method}, None, send))
        return sent

    return answer


@pytest.mark.parametrize(
    ("path", "headers", "method", "status"),
    [
        ("/v1/completions", (), "POST", 401),
        ("/invocations", (), "POST", 401),
        ("/metrics", (), "GET", 401),
        ("/health/", (), "GET", 401),
        ("/v1/models", [(b"authorization", b"Bearer wrong")], "GET", 401),
        ("/v1/models", [(b"authorization", b"sesame")], "GET", 401),
        ("/v1/models", [(b"authorization", b"Bearer ")], "GET", 401),
        ("/v1/models", KEYED, "GET", 200),
        ("/metrics", [(b"Authorization", b"bearer sesame")], "GET", 200),
        ("/health", (), "GET", 200),
        ("/v1/completions", (), "OPTIONS", 200),
    ],
)
def test_every_path_but_health_demands_the_key(
    ask: Callable[..., list[dict[str, Any]]], path: str, headers: Any, method: str, status: int
) -> None:
    assert ask(path, headers, method)[0]["status"] == status


def test_a_websocket_without_the_key_is_closed(ask: Callable[..., list[dict[str, Any]]]) -> None:
    assert ask("/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert ask("/v1/realtime", KEYED, kind="websocket")[0]["type"] == "http.response.start"


def test_threads_are_for_the_cores_of_the_first_memory_node(tmp_path: Path) -> None:
    starter = runpy.run_path(str(FOLDER / "serve.py"))
    for node, cpus in ((0, "0-3"), (1, "4-7"), (10, "8")):
        (tmp_path / f"node/node{node}").mkdir(parents=True)
        (tmp_path / f"node/node{node}/cpulist").write_text(f"{cpus}\n")
    for cpu in range(8):  # two threads of a core
        (tmp_path / f"cpu/cpu{cpu}/topology").mkdir(parents=True)
        siblings = f"{cpu % 4 // 2 * 2 + cpu // 4 * 4},{cpu % 4 // 2 * 2 + cpu // 4 * 4 + 1}\n"
        (tmp_path / f"cpu/cpu{cpu}/topology/thread_siblings_list").write_text(siblings)

    assert starter["nodes"]({2, 3, 4, 8}, tmp_path) == [{2, 3}, {4}, {8}]
    assert starter["nodes"]({99}, tmp_path) == [{99}]
    assert starter["cores"]({0, 1, 2, 3}, tmp_path) == 2
    assert starter["cores"]({0, 2, 8}, tmp_path) == 3
