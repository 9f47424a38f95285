"""The gateway in front of real engines with real models: the same calls, whichever answers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.gateway.harness import until
from tests.supervision import free_port

# The first start makes environments and fetches the models.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

TEXT = ("llamacpp", "triton", "torchserve")
EMBED = ("triton-embed", "torchserve-embed")
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ADMIN = "the-admins-own-long-key"


def rmlaunch(*words: str) -> str:
    command = [sys.executable, "-m", "launcher", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def url(state: Path) -> Iterator[str]:
    """A gateway over one of each, and one that it starts itself."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(state))
        try:
            for name in TEXT:
                rmlaunch("up", "-d", f"engine={name}", "device=cpu", f"name={name}")
            for name in EMBED:
                rmlaunch("up", "-d", f"engine={name.partition('-')[0]}", "device=cpu", "model=minilm", f"name={name}")
            rmlaunch("gateway", "up", "-d", f"gateway.port={port}", "gateway.routes.main=[llamacpp,triton]",
                     "gateway.deployments.lazy={launch: ['engine=llamacpp'], ttl_s: 2}", f"gateway.admin_key={ADMIN}",
                     f"gateway.keys.all={ADMIN}")  # fmt: skip
            yield f"http://127.0.0.1:{port}"
        finally:
            rmlaunch("stop", "--all")


@pytest.fixture
def _same_state(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a test see what the module's have started."""
    monkeypatch.setenv("RMLAUNCH_STATE", str(state))


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=ADMIN, max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize("name", TEXT)
def test_a_chat_is_answered_whole(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=24, temperature=0)

    assert "Paris" in (answer.choices[0].message.content or "")
    assert (answer.model, answer.choices[0].finish_reason) == (name, "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 4 <= answer.usage.completion_tokens <= 24


@pytest.mark.parametrize("name", TEXT)
def test_a_chat_is_streamed_with_its_usage_at_the_end(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": QUESTION, "max_tokens": 5, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    *pieces, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})

    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert sum(bool(piece.choices and piece.choices[0].delta.content) for piece in pieces) > 2
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 5)
    assert {piece.model for piece in (*pieces, last)} == {name}


@pytest.mark.parametrize("name", TEXT)
def test_a_text_is_continued(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**asked)
    streamed = "".join(
        piece.choices[0].text for piece in client.completions.create(**asked, stream=True) if piece.choices
    )

    assert "Paris" in whole.choices[0].text
    assert streamed == whole.choices[0].text
    assert (whole.choices[0].finish_reason, whole.usage and whole.usage.completion_tokens) == ("length", 6)


@pytest.mark.parametrize("name", EMBED)
def test_texts_are_embedded_packed_or_not(client: openai.OpenAI, name: str) -> None:
    texts = ["A cat sits on the mat.", "A kitten is lying on a rug."]
    packed = client.embeddings.create(model=name, input=texts)  # in base64, which the client unpacks
    plain = client.embeddings.create(model=name, input=texts, encoding_format="float")

    assert [len(row.embedding) for row in packed.data] == [384, 384]
    assert packed.data[0].embedding[:4] == pytest.approx((0.126535, -0.032851, -0.029060, 0.044407), abs=2e-4)
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)
    assert (packed.usage.prompt_tokens, packed.model) == (19, name)


def test_tools_reach_an_engine_that_takes_them(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}

    answer = client.chat.completions.create(model="llamacpp", messages=QUESTION, tools=[tool], max_tokens=8)

    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    with pytest.raises(openai.BadRequestError, match=r"tools = .* is not possible on this deployment \(triton\)"):
        client.chat.completions.create(model="triton", messages=QUESTION, tools=[tool])


@pytest.mark.parametrize("name", TEXT)
def test_what_an_engine_refuses_is_told_in_its_words(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "many words " * 3000}])

    assert 400 <= refused.value.status_code < 500
    assert refused.value.response.json()["error"]["source"] == "engine"


@pytest.mark.usefixtures("_same_state")
def test_a_deployment_is_started_on_first_use_and_stopped_when_nobody_asks(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="lazy", messages=QUESTION, max_tokens=24, temperature=0)

    assert "Paris" in (answer.choices[0].message.content or "")
    assert '"READY"' in rmlaunch("status", "lazy", "--json")
    until(lambda: '"STOPPED"' in rmlaunch("status", "lazy", "--json"), 30)
    assert client.chat.completions.create(model="lazy", messages=QUESTION, max_tokens=2).choices  # and again


def test_loading_and_unloading_are_the_admins(url: str) -> None:
    def do(what: str) -> requests.Response:
        return requests.post(f"{url}/models/lazy/{what}", headers={"authorization": f"Bearer {ADMIN}"}, timeout=60)

    assert do("load").json() == {"name": "lazy", "state": "READY"}
    assert do("unload").json() == {"name": "lazy", "state": "STOPPED"}
    assert do("unload").status_code == 404


@pytest.mark.usefixtures("_same_state")
def test_a_grammar_that_ends_llama_cpp_does_not_reach_it(client: openai.OpenAI) -> None:
    death = {"grammar": "root ::= " + "(" * 200_000}
    before = json.loads(rmlaunch("status", "llamacpp", "--json"))

    for _ in range(3):
        with pytest.raises(openai.BadRequestError, match="brackets more than 100 deep"):
            client.chat.completions.create(model="main", messages=QUESTION, extra_body=death)

    assert json.loads(rmlaunch("status", "llamacpp", "--json"))["starts"] == before["starts"]
    # Past the gateway it does what it did, three times, and the deployment is there again all the same.
    for crashes in range(1, 4):
        with pytest.raises(requests.ConnectionError):
            requests.post(f"{before['endpoint']}/v1/chat/completions", json={"messages": QUESTION, **death}, timeout=60)
        assert client.chat.completions.create(model="main", messages=QUESTION, max_tokens=2).choices
        until(lambda crashes=crashes: _is_ready("llamacpp", before["starts"] + crashes), 30)  # type: ignore[misc]
    assert client.chat.completions.create(model="llamacpp", messages=QUESTION, max_tokens=2).choices


@pytest.mark.usefixtures("_same_state")
def test_requests_wait_while_a_deployment_is_replaced(client: openai.OpenAI) -> None:
    ended = threading.Event()

    def ask() -> int:
        count = 0
        while not ended.is_set():
            assert client.chat.completions.create(model="llamacpp", messages=QUESTION, max_tokens=2).choices
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            rmlaunch(
                "up", "-d", "engine=llamacpp", "device=cpu", "name=llamacpp", "model.context_length=1024", "--replace"
            )
        finally:
            ended.set()
        assert all(one.result() > 0 for one in asking)  # and none was refused


def _is_ready(name: str, starts: int) -> bool:
    said = json.loads(rmlaunch("status", name, "--json"))
    return (said["state"], said["starts"]) == ("READY", starts)


@pytest.mark.usefixtures("_same_state")
def test_a_route_goes_on_with_the_next_deployment(client: openai.OpenAI) -> None:
    """The last test: it stops one of them."""

    def who() -> str | None:
        answer = client.chat.completions.with_raw_response.create(model="main", messages=QUESTION, max_tokens=2)
        return answer.headers.get("x-rmlaunch-deployment")

    assert who() == "llamacpp"
    rmlaunch("stop", "llamacpp")

    assert who() == "triton"
