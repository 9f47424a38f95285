"""The gateway as its users start it: a deployment of its own, in front of others that come and go."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from engines.base import Endpoint, Endpoints, HttpCheck, Model
from launcher.deployments.connection import Connection
from launcher.deployments.ledger import Ledger
from launcher.gateway.settings import hashed
from tests.gateway.harness import FAKE, events, until
from tests.supervision import detached, fake_plan, free_port, is_alive, marked_processes

pytestmark = pytest.mark.timeout(90)

SEEN_S = 1.0  #: within which the gateway knows of a change
KEY = "a-key-that-nobody-guesses"


class Gateway:
    def __init__(self, state: Path, port: int) -> None:
        self.state, self.port = state, port
        self.url = f"http://127.0.0.1:{port}"
        self.folder = state / "deployments" / "gateway"

    def ask(self, model: str, text: str = "hi", stream: bool = False, **headers: str) -> requests.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
        url = f"{self.url}/v1/chat/completions"
        return requests.post(url, json=body, stream=stream, timeout=30, headers=headers)

    def rmlaunch(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def up(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = self.rmlaunch("gateway", "up", "-d", f"gateway.port={self.port}", *words)
        assert done.returncode == 0, done.stderr
        return done

    def models(self) -> list[str]:
        answer = requests.get(f"{self.url}/v1/models", timeout=5).json()
        return [row["id"] for row in answer["data"]]

    def replica(self, name: str) -> dict[str, Any]:
        rows = requests.get(f"{self.url}/state", timeout=5).json()["replicas"]
        return next((row for row in rows if row["name"] == name), {})

    @property
    def pid(self) -> int:
        return int(json.loads((self.folder / "state.json").read_text())["pid"])


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path / "state", free_port())
    yield gateway
    gateway.rmlaunch("stop", "--all", "--now")
    assert marked_processes(str(gateway.folder / "run")) == []


@contextlib.contextmanager
def deployed(it: Gateway, name: str) -> Iterator[Path]:
    """A server with OpenAI's API, started and watched like an engine; its folder."""
    plan = fake_plan(it.state, name=name)
    port = plan.endpoints.http.port
    ready = HttpCheck("/v1/completions", "POST", {"prompt": "a", "model": "x"}, expect="choices")
    plan = dataclasses.replace(
        plan,
        engine="llamacpp",
        model=Model("theirs", "file:/none", "gguf", "/none"),
        argv=(sys.executable, str(FAKE), "--port", str(port), "--name", name),
        endpoints=Endpoints(Endpoint("127.0.0.1", port)),
        probes=dataclasses.replace(plan.probes, readiness=ready),
    )
    with detached(plan, it.state) as folder:
        yield folder


def tell(folder: Path, *ops: str) -> None:
    with Connection(folder) as connection:
        for _ in connection.follow(time.monotonic() + 10, *ops):
            pass


def test_deployments_are_seen_when_they_come_and_when_they_go(it: Gateway) -> None:
    it.up("gateway.routes.main=[a,b]")
    assert it.models() == ["main"]
    assert "there is no deployment 'a'" in it.ask("main").json()["error"]["message"]

    with deployed(it, "a") as first, deployed(it, "b"):
        assert until(lambda: it.models() == ["a", "b", "main"]) < SEEN_S
        answer = it.ask("main")
        assert (answer.headers["x-rmlaunch-deployment"], answer.json()["model"]) == ("a", "main")
        assert it.ask("b").json()["served_by"] == "b"

        tell(first, "stop")

        assert it.ask("main").json()["served_by"] == "b"
        assert until(lambda: not it.replica("a")["up"]) < SEEN_S
        assert it.ask("a").json()["error"]["message"] == "no deployment of 'a' can answer: a is STOPPED"
        assert it.models() == ["b", "main"]


def test_an_engine_that_is_killed_is_waited_for_while_it_is_started_again(it: Gateway) -> None:
    with deployed(it, "a") as folder:
        it.up()
        assert it.ask("a").status_code == 200
        pid = json.loads((folder / "state.json").read_text())["pid"]

        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))  # a request that it had taken already would be lost with it

        assert it.ask("a").status_code == 200
        until(lambda: json.loads((folder / "state.json").read_text())["starts"] == 2)


def hammer(it: Gateway, name: str, ended: threading.Event) -> Counter[int]:
    """How often `name` was answered what, by one client that asks until `ended`."""
    found: Counter[int] = Counter()
    while not ended.is_set():
        found[it.ask(name).status_code] += 1
    return found


@contextlib.contextmanager
def hammered(it: Gateway, name: str) -> Iterator[list[Counter[int]]]:
    """Four clients ask while the block runs; their counts are there when it has ended."""
    ended, found = threading.Event(), list[Counter[int]]()
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(hammer, it, name, ended) for _ in range(4)]
        try:
            yield found
        finally:
            ended.set()
            found += [one.result() for one in asking]


def test_requests_wait_for_the_only_engine_while_it_is_started_again(it: Gateway) -> None:
    with deployed(it, "a") as folder:
        it.up()
        with hammered(it, "a") as found:
            for starts in (2, 3):
                os.kill(json.loads((folder / "state.json").read_text())["pid"], signal.SIGKILL)
                until(lambda starts=starts: _ready(folder, starts), 20)  # type: ignore[misc]
            assert it.ask("a").status_code == 200

        # What it worked on is lost with it, at most one of each client for each kill; nobody else is sent away.
        counts = sum(found, Counter())
        assert counts.keys() <= {200, 502}
        assert counts[502] <= 8


def test_requests_wait_while_a_deployment_is_restarted(it: Gateway) -> None:
    with deployed(it, "a") as folder:
        it.up()
        with hammered(it, "a") as found:
            with Connection(folder) as connection:
                connection.tell("restart")
            until(lambda: _ready(folder, 2), 20)

        counts = sum(found, Counter())
        assert counts.keys() <= {200, 502}
        assert counts[502] <= 4  # the fake ends with what it works on, one of each client


def test_requests_wait_while_a_deployment_is_replaced_by_another(it: Gateway) -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(deployed(it, "a"))
        it.up()
        with hammered(it, "a") as found, Ledger(it.state).coming_back("a"):
            first.close()
            folder = second.enter_context(deployed(it, "a"))
            until(lambda: _ready(folder, 1), 20)

        counts = sum(found, Counter())
        assert counts.keys() <= {200, 502}
        assert counts[502] <= 4  # the fake ends with what it works on, one of each client


def test_a_request_that_ends_an_engine_is_given_to_no_other_and_told_so(it: Gateway) -> None:
    with deployed(it, "a") as first, deployed(it, "b") as second:
        it.up("gateway.routes.m=[a,b]")
        for number in range(3):
            until(lambda: _phase(first) == _phase(second) == "READY", 20)
            for name in ("a", "b"):
                until(lambda name=name: it.ask(name).status_code == 200)  # type: ignore[misc]
            # On connections that are kept: that they are closed at once says nothing of who has closed them.
            answer = it.ask("m", "die")

            assert answer.status_code == 502
            error = answer.json()["error"]
            assert (error["code"], error["source"]) == ("engine_ended", "engine")
            assert error["message"].endswith("exited 1")
            assert answer.headers["x-should-retry"] == "false"
            assert sum(_starts(folder) - 1 for folder in (first, second)) <= number + 1

        until(lambda: _phase(first) == _phase(second) == "READY", 20)
        assert {it.ask(name).status_code for name in ("a", "b", "m")} == {200}


def test_a_stream_that_ends_an_engine_is_told_so(it: Gateway) -> None:
    with deployed(it, "a"):
        it.up()

        said = events(it.ask("a", "die mid-stream", stream=True))

        assert said[-1]["error"]["code"] == "engine_ended"


def test_a_request_that_an_engine_was_killed_under_goes_to_another(it: Gateway) -> None:
    with deployed(it, "a") as folder, deployed(it, "b"), ThreadPoolExecutor(1) as pool:
        it.up("gateway.routes.m=[a,b]")
        answer = pool.submit(it.ask, "m", "slow 1")
        until(lambda: it.replica("a")["in_flight"] == 1)

        os.kill(json.loads((folder / "state.json").read_text())["pid"], signal.SIGKILL)

        assert answer.result().json()["served_by"] == "b"


def _said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return found


def _ready(folder: Path, starts: int) -> bool:
    return (_phase(folder), _starts(folder)) == ("READY", starts)


def _phase(folder: Path) -> str:
    return str(_said(folder)["state"])


def _starts(folder: Path) -> int:
    return int(_said(folder)["starts"])


def test_a_deployment_whose_supervisor_is_killed_serves_on_and_gets_another(it: Gateway) -> None:
    with deployed(it, "a") as folder:
        it.up()
        before = json.loads((folder / "state.json").read_text())

        os.kill(before["supervisor"], signal.SIGKILL)

        for _ in range(20):
            assert it.ask("a").status_code == 200
            time.sleep(0.02)
        until(lambda: json.loads((folder / "state.json").read_text())["supervisor"] != before["supervisor"], 10)
        assert json.loads((folder / "state.json").read_text())["pid"] == before["pid"]
        assert it.ask("a").status_code == 200
        it.rmlaunch("stop", "gateway")
        assert (
            json.loads((folder / "state.json").read_text())["state"] == "READY"
        )  # its supervisor is not the gateway's


def test_a_config_that_changes_is_taken_on_and_a_wrong_one_is_not(it: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "config" / "rmlaunch" / "gateway" / "mine.yaml"
    file.parent.mkdir(parents=True)
    config = "defaults: [default, _self_]\nroutes:\n  one: [a]\n"
    file.write_text(config)
    it.up("gateway=mine")
    assert it.models() == ["one"]

    file.write_text(config + "  two: [a]\n")
    until(lambda: it.models() == ["one", "two"], 10)
    file.write_text(config + "  two: []\n")
    log = Path(json.loads((it.folder / "state.json").read_text())["log"])
    until(lambda: "gateway.routes.two has no deployments" in log.read_text(), 10)

    assert it.models() == ["one", "two"]
    assert "new settings: route two added" in log.read_text()


def test_up_again_gives_a_running_gateway_its_new_routes(it: Gateway) -> None:
    it.up("gateway.routes.one=[a]")
    pid = it.pid

    done = it.up("gateway.routes.two=[a]")

    assert done.stderr == "gateway is already up; route one removed, route two added\n"
    assert done.stdout == f"gateway {it.url}\n"
    assert until(lambda: it.models() == ["two"]) < SEEN_S
    assert it.pid == pid
    refused = it.rmlaunch("gateway", "up", "-d", f"gateway.port={free_port()}")
    assert refused.returncode == 2
    assert "--replace" in refused.stderr
    assert it.up("--replace").returncode == 0
    assert it.pid != pid
    assert it.models() == []


def test_of_many_that_start_it_at_once_one_does_and_the_others_say_that_it_is_up(it: Gateway) -> None:
    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(it.up, "gateway.routes.one=[a]") for _ in range(5)]

        said = [one.result() for one in done]
    assert {one.stdout for one in said} == {f"gateway {it.url}\n"}
    assert sum("gateway is already up" in one.stderr for one in said) == 4


def test_keys_are_not_on_any_disk(it: Gateway) -> None:
    it.up(f"gateway.keys.bob={KEY}", f"gateway.admin_key='{KEY}-admin'")

    assert it.ask("x").status_code == 401
    assert it.ask("x", authorization=f"Bearer {KEY}").status_code == 404
    kept = [file.read_text(errors="replace") for file in it.state.rglob("*") if file.is_file()]
    assert any(hashed(KEY, "") in text for text in kept)
    assert not any(KEY in text for text in kept)
    assert "gateway" in it.rmlaunch("ps").stdout
    refused = it.rmlaunch("infer", "gateway", "hi")
    assert (refused.returncode, "ask it as OpenAI's server" in refused.stderr) == (2, True)


def test_another_address_needs_a_key(it: Gateway) -> None:
    refused = it.rmlaunch("gateway", "up", "-d", "gateway.host=0.0.0.0", f"gateway.port={it.port}")

    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: gateway.host='0.0.0.0' can be reached from other machines, and needs a key"
    )
    assert it.up("gateway.host=0.0.0.0", f"gateway.keys.bob={KEY}").stdout == f"gateway {it.url}\n"


def test_a_port_that_is_taken_is_told_with_who_has_it(it: Gateway) -> None:
    with deployed(it, "a") as folder:
        port = json.loads((folder / "plan.json").read_text())["ports"][0]

        refused = it.rmlaunch("gateway", "up", "-d", f"gateway.port={port}")

    assert refused.returncode == 2
    assert f"gateway.port={port} is in use by deployment 'a'" in refused.stderr


def test_a_gateway_that_is_killed_is_there_again_at_once(it: Gateway) -> None:
    with deployed(it, "a"):
        it.up("gateway.routes.m=[a]")

        os.kill(it.pid, signal.SIGKILL)

        assert until(lambda: _answers(it)) < 3.0


def test_a_stop_lets_answers_end_and_takes_no_new_ones(it: Gateway) -> None:
    with deployed(it, "a"):
        it.up("gateway.routes.m=[a]")
        answer = it.ask("m", "slow 0.1 pieces 10", stream=True)
        stopping = subprocess.Popen([sys.executable, "-m", "launcher", "stop", "gateway"], stderr=subprocess.DEVNULL)

        assert events(answer)[-1] == "[DONE]"
        assert stopping.wait(10) == 0
        with pytest.raises(requests.ConnectionError):
            it.ask("m")


def test_in_the_foreground_ctrl_c_stops_it(it: Gateway) -> None:
    words = [sys.executable, "-m", "launcher", "gateway", "up", f"gateway.port={it.port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"gateway {it.url}\n"
        assert it.models() == []
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 0
    assert errors == f"ready: gateway at {it.url}; Ctrl-C stops it\nstopped: gateway; nothing is left of it\n"


def test_in_the_foreground_a_second_ctrl_c_kills_it(it: Gateway) -> None:
    words = [sys.executable, "-m", "launcher", "gateway", "up", f"gateway.port={it.port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"gateway {it.url}\n"
        assert process.stderr is not None
        assert process.stderr.readline().startswith("ready: gateway")
        os.kill(it.pid, signal.SIGSTOP)  # deaf to the first one
        process.send_signal(signal.SIGINT)
        until(lambda: "STOPPING" in (it.folder / "state.json").read_text())
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert time.monotonic() - began < 3
    assert process.returncode == 0
    assert errors.endswith("stopped: gateway; nothing is left of it\n")


def test_it_stays_small(it: Gateway) -> None:
    with deployed(it, "a"):
        it.up("gateway.routes.m=[a]")
        requests.get(f"{it.url}/metrics", timeout=5)
        with requests.Session() as session:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            for _ in range(300):
                session.post(f"{it.url}/v1/chat/completions", json=body, timeout=5)
        assert psutil.Process(it.pid).memory_info().rss < 80 << 20


def _answers(it: Gateway) -> bool:
    with contextlib.suppress(requests.RequestException):
        return it.ask("m").status_code == 200
    return False
