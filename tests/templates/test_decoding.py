"""What a language model does with requests and tokens, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from bad_request import BadRequestError
from decoding import Detokenizer, Sampling, StopFilter, parse_messages


def read(**given: Any) -> Sampling:
    return Sampling.from_json(json.dumps(given))


def test_defaults_are_vllms() -> None:
    assert read() == Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=16, stop=(), seed=None)


def test_every_parameter_is_read() -> None:
    given = read(temperature=0.5, top_p=0.9, top_k=40, max_tokens=8, stop=["a", "b"], seed=7)

    assert given == Sampling(0.5, 0.9, 40, 8, ("a", "b"), 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"temprature": 1}', "unknown sampling parameter 'temprature' = 1; known: temperature"),
        ('{"temperature": "hot"}', "temperature must be a number, not 'hot'"),
        ('{"temperature": true}', "temperature must be a number, not True"),
        ('{"temperature": -1}', "temperature must be from 0 to 1000, not -1"),
        ('{"top_p": 0}', "top_p must be from 1e-06 to 1, not 0"),
        ('{"max_tokens": 0}', "max_tokens must be from 1"),
        ('{"max_tokens": 1.5}', "max_tokens must be an integer, not 1.5"),
        ('{"stop": [""]}', "stop must be a non-empty string or a list of them"),
        ("[1]", r"sampling_parameters must be a JSON object, not \[1\]"),
        ("{", "sampling_parameters is not valid JSON"),
        ('{"temperature": NaN}', "NaN is not JSON"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(text: str, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        Sampling.from_json(text)


@pytest.mark.parametrize("text", ["{}", "[]", '[{"role": "user"}]', '["hello"]', "nonsense"])
def test_messages_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match="message"):
        parse_messages(text)


def decode_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are the bytes of UTF-8."""
    return bytes(tokens).decode(errors="replace")


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    detokenizer = Detokenizer(decode_bytes, prompt=list(b"ab"))

    pieces = [detokenizer.push(token) for token in "é☃x".encode()]

    assert pieces == ["", "é", "", "", "☃", "x"]
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_left_out() -> None:
    detokenizer = Detokenizer(decode_bytes, prompt=[])

    text = "".join(detokenizer.push(token) for token in "a☃".encode()[:-1])

    assert text + detokenizer.flush() == "a"


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "found"),
    [
        (["one two"], ["two"], "one ", True),
        (["one t", "w", "o three"], ["two"], "one ", True),
        (["one t", "w", "ins"], ["two"], "one twins", False),
        (["ababac"], ["abac"], "ab", True),
        (["a", "b"], ["zz", "b"], "a", True),
        (["plain"], [], "plain", False),
    ],
)
def test_text_ends_before_the_first_stop_string(
    pieces: list[str], stops: list[str], expected: str, found: bool
) -> None:
    stopper = StopFilter(stops)
    out, ended = "", False
    for piece in pieces:
        text, ended = stopper.push(piece)
        out += text
        if ended:
            break

    assert out + ("" if ended else stopper.flush()) == expected
    assert ended is found


def test_what_may_begin_a_stop_string_waits() -> None:
    stopper = StopFilter(["</end>"])

    assert stopper.push("text </") == ("text ", False)
    assert stopper.push("b>") == ("</b>", False)
