"""One suite over every engine that runs here: real servers, the real model, one client."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import requests

from engines.base import GenerateRequest, InferenceError, Sampling
from launcher import launch
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase
from tests import dockerd
from tests.makers import makers
from tests.supervision import marked_processes, wait_for

# The first start makes an environment and converts the model.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KEY = "sesame"
PATIENCE = "supervise.stop_grace_s=60"  # for the answer that is awaited, on a busy machine
IN_DOCKER = f"runtime=docker runtime.base={dockerd.BASE}"
ENGINES = [
    f"engine=llamacpp api_key={KEY}",
    "engine=triton engine.protocol=grpc",
    "engine=triton engine.protocol=http",
    "engine=torchserve",
    "engine=torchserve engine.backend=vllm",
    f"engine=transformers api_key={KEY}",
    f"engine=vllm api_key={KEY}",
    f"engine=llamacpp api_key={KEY} {IN_DOCKER}",
    f"engine=triton engine.protocol=grpc {IN_DOCKER}",
    f"engine=torchserve {IN_DOCKER}",
]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def _name(words: str) -> str:
    """Of a parameter: `triton-grpc`, `llamacpp-docker`."""
    values = (word.partition("=")[2] for word in words.split() if not word.startswith(("api_key=", "runtime.")))
    return "-".join(values)


@pytest.fixture(scope="module", params=ENGINES, ids=_name)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingEngine]:
    makers()  # before the server starts
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        if IN_DOCKER in request.param:
            patch.setenv("DOCKER_HOST", request.getfixturevalue("docker_daemon").host)
        with launch(*request.param.split(), "device=cpu", "model=smollm2", PATIENCE) as serving:
            yield serving


def test_ready_is_what_the_server_says(engine: ServingEngine) -> None:
    assert engine.is_running
    assert engine.health_check()
    assert engine.news.phase is Phase.READY


def test_a_chat_is_answered(engine: ServingEngine) -> None:
    assert "Paris" in engine.infer(QUESTION, max_tokens=32)


def test_a_text_is_continued_and_not_repeated(engine: ServingEngine) -> None:
    text = engine.infer("The capital of France is", max_tokens=8)

    assert "Paris" in text
    assert "The capital of France is" not in text


def test_several_texts_are_answered_in_their_order(engine: ServingEngine) -> None:
    texts = ["The capital of France is", "One, two, three,"]

    assert engine.infer(texts, max_tokens=4) == [engine.infer(text, max_tokens=4) for text in texts]


def test_a_stream_is_the_same_text_in_pieces(engine: ServingEngine) -> None:
    pieces = list(engine.stream("One, two, three,", max_tokens=12))

    assert len(pieces) > 3
    assert "".join(pieces) == engine.infer("One, two, three,", max_tokens=12)


def test_requests_between_streams_are_answered_every_time(engine: ServingEngine) -> None:
    """A server may close the connection of a stream that it promised to keep."""
    for _ in range(15):
        assert list(engine.stream("One, two, three,", max_tokens=2))
        assert engine.infer("One, two, three,", max_tokens=1)


def test_the_answer_says_why_it_ended_and_what_it_cost(engine: ServingEngine) -> None:
    def ask(max_tokens: int, stream: bool) -> tuple[str | None, int]:
        request = GenerateRequest(
            prompt="One, two,", sampling=Sampling(max_tokens=max_tokens), stream=stream, usage=True
        )
        chunks = list(engine.chunks(request))
        return chunks[-1].finish_reason, sum(chunk.completion_tokens or 0 for chunk in chunks)

    assert ask(5, stream=False) == ("length", 5)
    assert ask(5, stream=True) == ("length", 5)


def test_a_stop_string_ends_the_text_and_is_not_in_it(engine: ServingEngine) -> None:
    whole = engine.infer("One, two, three,", max_tokens=12)
    stop = whole.strip()[3:6]

    cut = engine.infer("One, two, three,", max_tokens=12, stop=stop)

    assert stop in whole
    assert cut == whole[: whole.index(stop)]


def test_a_seed_repeats_a_sampled_text(engine: ServingEngine) -> None:
    def sample(seed: int) -> str:
        return engine.infer("Once upon a time", max_tokens=16, temperature=1.5, top_p=0.95, top_k=50, seed=seed)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(1, 5)}) > 1


def test_two_at_once_get_their_own_answers(engine: ServingEngine) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    alone = [engine.infer(prompt, max_tokens=6) for prompt in prompts]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda prompt: engine.infer(prompt, max_tokens=6), prompts))

    assert together == alone


def test_a_stream_that_is_dropped_leaves_the_server_free(engine: ServingEngine) -> None:
    # As many as the server decodes at once: if one of them went on, its slot would be taken for many seconds.
    # Transformers decodes one after the other, so that the second begins when the first has ended.
    tokens = 300 if engine.engine_type == "transformers" else 1500
    streams = [engine.stream("Once upon a time", max_tokens=tokens) for _ in range(2)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]  # a generator

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: engine.infer("One, two, three,", max_tokens=2), range(2)))
    assert time.monotonic() - began < 6


def test_what_the_server_refuses_is_told_in_its_words(engine: ServingEngine) -> None:
    with pytest.raises(InferenceError, match=r"2\d\d\d.*(context|limit)|context.*2048"):
        engine.infer("word " * 2500, max_tokens=1)

    assert engine.infer("One, two, three,", max_tokens=2)


@pytest.mark.parametrize(
    ("inputs", "sampling", "words"),
    [
        ("a", {"max_tokns": 3}, "unknown sampling option 'max_tokns'"),
        ([{"role": "user"}], {}, "give a text, or messages"),
        ([], {}, "give a text, or messages"),
    ],
)
def test_a_wrong_request_is_not_sent(engine: ServingEngine, inputs: Any, sampling: Any, words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        engine.infer(inputs, **sampling)


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine: engine.embed(["a"]),
        lambda engine: engine.infer({"x": numpy.zeros(1)}),
    ],
    ids=["texts to embed", "arrays"],
)
def test_what_the_model_is_not_for_is_refused(engine: ServingEngine, ask: Callable[[ServingEngine], object]) -> None:
    with pytest.raises(InferenceError, match=r"serves model\.task=generate, which does not take"):
        ask(engine)


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ("", {}, "the prompt is empty"),
        ("a", {"max_tokens": 0}, "max_tokens=0"),
        ("word " * 200_000, {"max_tokens": 1}, r"."),
    ],
    ids=["empty", "no tokens", "1 MB"],
)
def test_a_bad_request_gets_one_clear_error(
    engine: ServingEngine, prompt: str, sampling: dict[str, Any], words: str
) -> None:
    with pytest.raises(InferenceError, match=words) as caught:
        engine.infer(prompt, **sampling)

    assert len(str(caught.value)) < 2000
    assert_it_lives_on(engine)


def raw_request(engine: ServingEngine) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The URL, the body and the headers of a request that the server answers: the readiness probe's."""
    check, door, key = engine.plan.probes.readiness, engine.plan.endpoints.http, engine.plan.key
    assert check.body is not None
    return f"{door.url}{check.path}", dict(check.body), {"Authorization": f"Bearer {key.read() if key else KEY}"}


def assert_it_lives_on(engine: ServingEngine) -> None:
    assert engine.infer("One, two, three,", max_tokens=2)
    assert engine.health_check()
    assert (engine.news.starts, engine.news.phase) == (1, Phase.READY)


def test_nobody_is_answered_without_the_key(engine: ServingEngine) -> None:
    url, body, _ = raw_request(engine)
    if engine.engine_type == "triton":  # has no keys, and asking for one is refused while planning
        assert requests.post(url, json=body, timeout=60).status_code == 200
        return

    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = requests.post(url, json=body, headers=headers, timeout=60)
        assert answer.status_code in (400, 401)
        assert "choices" not in answer.text
    if engine.engine_type == "vllm":  # its own check leaves this open
        assert requests.get(f"{engine.plan.endpoints.http.url}/metrics", timeout=60).status_code == 401


def test_a_model_that_is_not_served_is_an_error(engine: ServingEngine) -> None:
    url, body, headers = raw_request(engine)
    assert requests.post(url, json=body, headers=headers, timeout=60).status_code == 200
    model_id = engine.plan.model.id
    elsewhere = url.replace(f"/{model_id}/", "/nobody/").replace(f"/{model_id}", "/nobody")
    if "model" in body:
        body["model"] = "nobody"

    answer = requests.post(elsewhere, json=body, headers=headers, timeout=60)

    if engine.engine_type == "llamacpp":  # has one model, looks at no name, and says whose answer it is
        assert (answer.status_code, answer.json()["model"]) == (200, model_id)
        return
    assert answer.status_code in (400, 404)
    assert "nobody" in answer.text
    assert_it_lives_on(engine)


def test_bytes_that_are_no_text_are_an_error(engine: ServingEngine) -> None:
    url, body, headers = raw_request(engine)
    broken = json.dumps(body).encode().replace(b'"a"', b'"\xff\xfe\x80"')
    assert b"\xff" in broken

    answer = requests.post(url, data=broken, headers={**headers, "Content-Type": "application/json"}, timeout=60)

    assert 400 <= answer.status_code < 600
    assert answer.text
    assert_it_lives_on(engine)


def test_it_publishes_its_numbers(engine: ServingEngine) -> None:
    if engine.plan.endpoints.metrics is None:
        with pytest.raises(InferenceError, match="publishes no metrics"):
            engine.get_metrics()
        return
    engine.infer("One, two, three,", max_tokens=2)

    numbers = engine.get_metrics()

    assert len(numbers) > 3
    assert any(value > 0 for value in numbers.values())


# The last two of each engine end what the ones before have shared: a server takes up to a minute to start.


def test_a_client_goes_on_after_the_engine_was_killed_and_restarted(engine: ServingEngine) -> None:
    before = engine.infer("One, two, three,", max_tokens=4)
    pid, starts = engine.news.pid, engine.news.starts
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: engine.news.starts == starts + 1 and engine.news.phase is Phase.READY, timeout_s=180)

    assert engine.infer("One, two, three,", max_tokens=4) == before


def test_stop_lets_an_answer_finish_and_leaves_nothing(engine: ServingEngine) -> None:
    plan = engine.plan
    assert marked_processes(plan.run_dir) != []
    text = "Once upon a time, there was a"
    expected = engine.infer(text, max_tokens=64)
    pieces = engine.stream(text, max_tokens=64)
    answer = next(pieces)

    assert engine.ask_stop()
    wait_for(lambda: engine.news.phase is Phase.STOPPING)
    answer += "".join(pieces)

    assert answer == expected
    stopped = engine.stop()

    assert stopped is not None
    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert marked_processes(plan.run_dir) == []
    assert not Path(plan.run_dir).exists()
    assert makers().left_by(Path(plan.run_dir)) == []
    for endpoint in (plan.endpoints.http, plan.endpoints.grpc):
        if endpoint:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((endpoint.host, endpoint.port))
