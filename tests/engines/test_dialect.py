"""OpenAI's calls as each server takes them, and its answers back."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from engines.base import InferenceError
from engines.dialect import CHAT, COMPLETIONS, DONE, EMBEDDINGS, Call, OpenAI, names_model_once
from engines.triton_openai import TritonOpenAI


def call(path: str = CHAT, raw: str | None = None, **fields: Any) -> Call:
    text = json.dumps(fields) if raw is None else raw
    return Call(path, text.encode(), json.loads(text))


# ------------------------------------------------------------------------------------------------------------- OpenAI


def test_a_body_is_passed_on_as_it_was_written_but_for_the_models_name() -> None:
    raw = '{ "temperature": 1.0e-1, "x" : "\\u00e9\\/", "model" :  "chat-\\u006dain","y":[1E5, {"model": 3}],"z":null }'

    assert OpenAI("smollm2").request(call(raw=raw)) == (
        "/v1/chat/completions",
        raw.replace('"chat-\\u006dain"', '"smollm2"').encode(),
    )


@pytest.mark.parametrize(
    "raw",
    [
        '{"model": "m", "metadata": {"model": "m"}}',
        '{"metadata": {"model": "n"}, "mod\\u0065l": "m"}',
        '{"metadata": {"model": "m"}, "mod\\u0065l": "m", "x": {"model": "y"}}',
        '{"model": "a", "model": "m"}',
    ],
)
def test_only_the_requests_own_model_is_renamed(raw: str) -> None:
    _, body = OpenAI("theirs").request(call(raw=raw))

    assert json.loads(body) == {**json.loads(raw), "model": "theirs"}


def test_a_text_that_looks_like_the_key_is_left_alone() -> None:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": '"model": "m"'}], "model": "m"}

    _, body = OpenAI("theirs").request(call(**fields))

    assert json.loads(body) == {**fields, "model": "theirs"}


def test_without_a_name_of_its_own_a_server_gets_the_clients() -> None:
    asked = call(model="m", prompt="x")

    assert OpenAI(None, prefix="").request(asked) == ("/chat/completions", asked.body)


def test_fields_are_renamed_and_left_out() -> None:
    asked = call(COMPLETIONS, model="m", prompt="x", max_tokens=3, seed=1)

    _, body = OpenAI("theirs", fields={"max_tokens": "max_completion_tokens", "seed": None}).request(asked)

    assert json.loads(body) == {"model": "theirs", "prompt": "x", "max_completion_tokens": 3}


def test_numbers_keep_their_digits_where_fields_are_renamed() -> None:
    asked = call(
        raw='{"model": "m", "seed": 123456789012345678901234567890, "max_tokens" : 3, "t": 1.10, "x": "\\u00e9"}'
    )

    _, body = OpenAI("theirs", fields={"max_tokens": "most"}).request(asked)

    assert body == b'{"model":"theirs","seed":123456789012345678901234567890,"most":3,"t":1.10,"x":"\\u00e9"}'


@pytest.mark.parametrize(
    ("raw", "once"),
    [
        ('{"model": "m"}', True),
        ('{"messages": [{"content": "\\"model\\": \\"m\\""}], "model": "m"}', True),
        ('{"model": "m", "model": "n"}', False),
        ('{"model": "m", "mo\\u0064el": "n"}', False),
        ('{"model": "m", "tools": [{"model": 1}]}', False),
        ('{"mod\\u0065l": "m"}', False),
    ],
)
def test_a_body_whose_model_may_be_said_twice_is_told_from_a_plain_one(raw: str, once: bool) -> None:
    assert names_model_once(raw.encode()) is once


# ------------------------------------------------------------------------------------------------------------- Triton

CHATS = TritonOpenAI("smollm2", "generate", chat=True)
HI = [{"role": "user", "content": "Hi"}]


def tensors(asked: Call, dialect: TritonOpenAI = CHATS) -> dict[str, Any]:
    _, body = dialect.request(asked)
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_chat_becomes_tensors_of_the_generate_extension() -> None:
    path, body = CHATS.request(call(model="m", messages=HI, temperature=0, stop="x", seed=3, user="u", n=1))

    assert path == "/v2/models/smollm2/generate"
    assert json.loads(body) == {
        "messages": json.dumps(HI),
        "sampling_parameters": json.dumps({"temperature": 0, "stop": "x", "seed": 3, "max_tokens": 2**31 - 1}),
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_a_text_keeps_the_servers_limit_and_a_stream_is_another_path() -> None:
    path, body = CHATS.request(call(COMPLETIONS, model="m", prompt=["x"], stream=True))

    assert path == "/v2/models/smollm2/generate_stream"
    asked = json.loads(body)
    assert (asked["text_input"], asked["stream"], asked["sampling_parameters"]) == ("x", True, "{}")


@pytest.mark.parametrize(
    ("given", "most"), [({"max_tokens": 3}, 3), ({"max_completion_tokens": 4, "max_tokens": 3}, 4)]
)
def test_both_names_of_the_limit_are_known(given: dict[str, Any], most: int) -> None:
    assert json.loads(tensors(call(messages=HI, **given))["sampling_parameters"])["max_tokens"] == most


def test_the_texts_of_a_message_become_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert json.loads(tensors(call(messages=[{"role": "user", "content": parts}]))["messages"]) == [
        {"role": "user", "content": "ab"}
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (call(messages=HI, n=2), "n = 2 is not possible"),
        (call(messages=HI, tools=[{"type": "function"}]), "tools = "),
        (call(messages=HI, logit_bias={"5": 1}), "logit_bias = "),
        (call(messages=HI, best_effort=1), "best_effort is not known"),
        (call(messages=[]), "messages must be a list with at least one message"),
        (call(messages=["x"]), "a message must be an object"),
        (call(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "texts alone"),
        (call(COMPLETIONS, prompt=[1, 2]), "prompt must be one text"),
        (call(COMPLETIONS), "prompt must be one text"),
        (call(EMBEDDINGS, input="x"), "serves model.task=generate, and /v1/embeddings needs embed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_triton_cannot_do_is_refused_before_it_is_asked(asked: Call, words: str) -> None:
    with pytest.raises(InferenceError, match=words) as refused:
        CHATS.request(asked)

    assert refused.value.status == 400


def test_a_model_without_a_template_takes_no_chat() -> None:
    with pytest.raises(InferenceError, match="takes no messages"):
        TritonOpenAI("m", "generate", chat=False).request(call(messages=HI))


ANSWER = {"text_output": "Yes", "finish_reason": "length", "num_input_tokens": 5, "num_output_tokens": 2}


def test_an_answer_is_openais() -> None:
    answer = json.loads(CHATS.whole(call(model="m", messages=HI), json.dumps(ANSWER).encode()))

    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Yes"},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


@pytest.mark.parametrize("body", [b'{"error": "out of memory"}', b"[]", b"not JSON"])
def test_an_answer_that_is_none_is_a_failure(body: bytes) -> None:
    with pytest.raises(InferenceError):
        CHATS.whole(call(messages=HI), body)


def said(asked: Call, *pieces: dict[str, Any]) -> list[Any]:
    events = CHATS.events(asked)
    text = b"".join(events.event(json.dumps(piece).encode()) for piece in pieces) + events.end()
    assert text.endswith(DONE)
    return [json.loads(line[6:]) for line in text.split(b"\n\n")[:-2]]


PIECES = (
    {"text_output": "Ye", "finish_reason": "None", "num_input_tokens": 5, "num_output_tokens": 1},
    {"text_output": "s", "finish_reason": "stop", "num_input_tokens": 5, "num_output_tokens": 2},
)


def test_a_stream_tells_its_role_once_and_why_it_ended() -> None:
    first, last = said(call(messages=HI, stream=True), *PIECES)

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "Ye"}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({"content": "s"}, "stop")
    assert "usage" not in last
    assert first["id"] == last["id"]


def test_the_usage_of_a_stream_is_its_sum_where_it_is_asked_for() -> None:
    *_, last = said(call(messages=HI, stream=True, stream_options={"include_usage": True}), *PIECES)

    assert (last["choices"], last["usage"]) == ([], {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8})


def test_a_stream_that_does_not_say_why_it_ended_has_not() -> None:
    events = CHATS.events(call(messages=HI, stream=True))
    events.event(json.dumps(PIECES[0]).encode())

    with pytest.raises(InferenceError, match="before the text did"):
        events.end()


EMBEDS = TritonOpenAI("minilm", "embed", chat=False)
VECTORS = {
    "outputs": [
        {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]},
        {"name": "num_input_tokens", "datatype": "UINT32", "shape": [2], "data": [3, 4]},
    ]
}


def test_texts_to_embed_become_one_tensor() -> None:
    path, body = EMBEDS.request(call(EMBEDDINGS, model="m", input=["a", "b"]))

    assert path == "/v2/models/minilm/infer"
    assert json.loads(body) == {
        "inputs": [{"name": "text_input", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]
    }


def test_embeddings_are_rows_as_numbers_or_packed() -> None:
    body = json.dumps(VECTORS).encode()

    plain = json.loads(EMBEDS.whole(call(EMBEDDINGS, input=["a", "b"]), body))
    packed = json.loads(EMBEDS.whole(call(EMBEDDINGS, input=["a", "b"], encoding_format="base64"), body))

    assert [row["embedding"] for row in plain["data"]] == [[1.0, 2.0], [3.0, 4.0]]
    assert plain["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert struct.unpack("<2f", base64.b64decode(packed["data"][1]["embedding"])) == (3.0, 4.0)
