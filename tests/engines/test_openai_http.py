"""What the OpenAI client sends, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy
import pytest

from engines.base import Chunk, EmbedRequest, GenerateRequest, InferenceError, Sampling, TensorRequest, Vector
from engines.openai_http import OpenAIClient
from tests.engines.test_json_http import Asked, answering

HI = ({"role": "user", "content": "Hi"},)


@pytest.fixture
def client() -> Iterator[OpenAIClient]:
    client = OpenAIClient()
    yield client
    client.close()


def events(*data: object) -> bytes:
    return b"".join(f"data: {json.dumps(item)}\n\n".encode() for item in data) + b"data: [DONE]\n\n"


def test_a_text_is_one_completion_with_what_was_asked_for(client: OpenAIClient) -> None:
    asked = Asked()
    answer = {"choices": [{"text": " b", "finish_reason": "length"}],
              "usage": {"prompt_tokens": 2, "completion_tokens": 1}}  # fmt: skip
    with answering(200, json.dumps(answer).encode(), asked=asked) as target:
        sampling = Sampling(max_tokens=1, temperature=0.5, top_p=0.9, top_k=3, stop=("x",), seed=7)
        chunks = list(client.infer(target, GenerateRequest(prompt="a", sampling=sampling)))

    assert chunks == [Chunk(" b", "length", 2, 1)]
    assert asked.paths == ["/v1/completions"]
    assert json.loads(asked.bodies[0]) == {
        "model": "m", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": ["x"],
        "prompt": "a",
    }  # fmt: skip


def test_messages_are_a_chat_and_its_pieces_are_yielded_as_they_come(client: OpenAIClient) -> None:
    asked = Asked()
    body = events(
        {"choices": [{"delta": {"role": "assistant", "content": None}}], "usage": None},
        {"choices": [{"delta": {"content": "He"}}]},
        {"choices": [{"delta": {"content": "llo"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    )
    with answering(200, body, asked=asked) as target:
        chunks = list(client.infer(target, GenerateRequest(messages=HI, stream=True, usage=True)))

    assert chunks == [Chunk("He"), Chunk("llo"), Chunk("", "stop", 3, 2)]
    assert asked.paths == ["/v1/chat/completions"]
    assert json.loads(asked.bodies[0]) == {
        "model": "m", "max_tokens": 128, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": "Hi"}],
    }  # fmt: skip


def test_fields_are_renamed_and_left_out_for_servers_that_call_them_otherwise(client: OpenAIClient) -> None:
    asked = Asked()
    with answering(200, b'{"choices": [{"text": "b"}]}', asked=asked) as target:
        fields = {"max_tokens": "max_completion_tokens", "temperature": None, "nothing": None}
        list(client.infer(target, GenerateRequest(prompt="a"), fields))

    assert json.loads(asked.bodies[0]) == {"model": "m", "max_completion_tokens": 128, "prompt": "a"}


def test_a_prefix_of_the_servers_own_takes_the_place_of_v1() -> None:
    asked, client = Asked(), OpenAIClient(prefix="")
    with answering(200, b'{"choices": [{"text": "b"}]}', asked=asked) as target:
        list(client.infer(target, GenerateRequest(prompt="a")))
    client.close()

    assert asked.paths == ["/completions"]


def test_a_stream_that_is_closed_before_the_text_ended_is_an_error(client: OpenAIClient) -> None:
    with answering(200, events({"choices": [{"text": "He"}]})) as target:
        chunks = client.infer(target, GenerateRequest(prompt="a", stream=True))
        assert next(chunks) == Chunk("He")
        with pytest.raises(InferenceError, match="ended before the text did"):
            next(chunks)


def test_embeddings_come_in_the_order_of_the_texts(client: OpenAIClient) -> None:
    asked = Asked()
    body = {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}
    with answering(200, json.dumps(body).encode(), asked=asked) as target:
        assert list(client.infer(target, EmbedRequest(("a", "b")))) == [Vector((1.0,)), Vector((2.0,))]

    assert asked.paths == ["/v1/embeddings"]
    assert json.loads(asked.bodies[0]) == {"model": "m", "input": ["a", "b"]}


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{"index": 0, "embedding": [1.0]}]}'])
def test_fewer_embeddings_than_texts_are_an_error(client: OpenAIClient, body: bytes) -> None:
    with answering(200, body) as target, pytest.raises(InferenceError, match=r"answered [01] embeddings to 2 texts"):
        list(client.infer(target, EmbedRequest(("a", "b"))))


def test_tensors_are_refused(client: OpenAIClient) -> None:
    with answering(200, b"{}") as target, pytest.raises(InferenceError, match="takes texts and messages, no tensors"):
        list(client.infer(target, TensorRequest({"x": numpy.zeros(1)})))
