"""One suite over every engine that runs here: real servers, the real model, one client."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from engines.base import GenerateRequest, InferenceError, Sampling
from launcher import launch, registry
from launcher.lifecycle import Phase
from launcher.serving import ServingEngine
from tests.supervision import marked_processes, wait_for

# The first start makes an environment and converts the model.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ENGINES = ["engine=llamacpp", "engine=triton engine.protocol=grpc", "engine=triton engine.protocol=http"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda param: param.replace("engine.", "").replace("engine=", ""))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        with launch(*request.param.split(), "device=cpu", "model=smollm2") as serving:
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
    streams = [engine.stream("Once upon a time", max_tokens=1500) for _ in range(2)]
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


def test_embeddings_have_one_row_per_text_where_the_engine_is_able(engine: ServingEngine) -> None:
    if "embed" not in registry.engine(engine.engine_type).capabilities.tasks:
        with pytest.raises(InferenceError, match="embeddings"):
            engine.embed(["a"])
        return
    rows = engine.embed(["a cat", "a dog", "a cat"])

    assert rows.shape == (3, 576)
    assert rows.dtype == "float32"
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize("name", ["llamacpp", "triton"])
def test_a_client_goes_on_after_the_engine_was_killed_and_restarted(name: str) -> None:
    with launch(f"engine={name}", "device=cpu", "model=smollm2") as serving:
        before = serving.infer("One, two, three,", max_tokens=4)
        pid = serving.news.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: serving.news.starts == 2 and serving.news.phase is Phase.READY, timeout_s=60)

        assert serving.infer("One, two, three,", max_tokens=4) == before


def test_a_key_is_demanded_by_the_server() -> None:
    with launch("engine=llamacpp", "device=cpu", "model=smollm2", "api_key=sesame") as serving:
        assert serving.infer("One, two,", max_tokens=2)
        url = f"{serving.plan.endpoints.http.url}/v1/completions"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert requests.post(url, json={"prompt": "a"}, headers=headers, timeout=10).status_code == 401


@pytest.mark.parametrize("name", ["llamacpp", "triton"])
def test_stop_leaves_nothing(name: str) -> None:
    before = _litter()

    with launch(f"engine={name}", "device=cpu", "model=smollm2") as serving:
        serving.infer("a", max_tokens=2)
        plan = serving.plan
        assert marked_processes(plan.run_dir) != []
    stopped = serving.stop()

    assert stopped is not None
    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert marked_processes(plan.run_dir) == []
    assert not Path(plan.run_dir).exists()
    assert _litter() == before
    for endpoint in (plan.endpoints.http, plan.endpoints.grpc):
        if endpoint:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((endpoint.host, endpoint.port))


def _litter() -> set[str]:
    """What engines are known to leave in places that belong to nobody."""
    return {str(path) for path in (*Path("/dev/shm").iterdir(), *Path("/tmp").glob("python_env_*"))}
