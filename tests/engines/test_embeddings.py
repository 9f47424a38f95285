"""Sentence embeddings through every engine that serves them here: real servers, the real model, one client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engines.base import InferenceError
from launcher import launch
from launcher.serving.engine import ServingEngine

# The first start makes an environment and fetches the model.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ENGINES = [
    "engine=triton engine.protocol=grpc",
    "engine=triton engine.protocol=http",
    "engine=torchserve",
    "engine=vllm",
]

CAT, KITTEN, SHARES = "A cat sits on the mat.", "A kitten is lying on a rug.", "Shares fell sharply on Monday."

#: the first values for CAT, as sentence-transformers 6.2.0 computes them from the same folder
REFERENCE = (0.126535, -0.032851, -0.029060, 0.044407)

Rows = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda param: param.replace("engine.", "").replace("engine=", ""))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        with launch(*request.param.split(), "device=cpu", "model=minilm") as serving:
            yield serving


def test_there_is_a_row_of_unit_length_per_text(engine: ServingEngine) -> None:
    rows = engine.embed([CAT, KITTEN, SHARES])

    assert (rows.shape, rows.dtype) == ((3, 384), np.dtype("float32"))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_engines_agree_with_sentence_transformers(engine: ServingEngine) -> None:
    np.testing.assert_allclose(engine.embed([CAT])[0, :4], REFERENCE, atol=2e-4)


def test_what_means_the_same_is_closer_than_what_does_not(engine: ServingEngine) -> None:
    cat, kitten, shares = engine.embed([CAT, KITTEN, SHARES])

    assert cat @ kitten > 0.5
    assert cat @ shares < 0.2


def test_a_row_does_not_depend_on_the_texts_beside_it(engine: ServingEngine) -> None:
    texts = [CAT, "a", " ".join([SHARES] * 20), KITTEN] * 10

    together = engine.embed(texts)

    for number in range(4):
        np.testing.assert_allclose(together[number], engine.embed([texts[number]])[0], atol=1e-5)
        np.testing.assert_allclose(together[number], together[number + 36], atol=1e-5)


def test_several_requests_at_once_get_their_own_rows(engine: ServingEngine) -> None:
    texts = [CAT, KITTEN, SHARES, "Il fait beau."]
    alone = engine.embed(texts)

    with ThreadPoolExecutor(4) as pool:
        for row, at_once in zip(alone, pool.map(lambda text: engine.embed([text])[0], texts), strict=True):
            np.testing.assert_allclose(row, at_once, atol=1e-5)


def test_texts_beyond_ascii_are_texts(engine: ServingEngine) -> None:
    german, same, other = engine.embed(["ein Café in Zürich", "EIN CAFÉ IN ZÜRICH", "🦙🦙🦙 \x00 \u200b"])

    np.testing.assert_allclose(german, same, atol=1e-5)  # the tokenizer lower-cases
    assert np.isfinite(other).all()


def test_a_text_that_is_too_long_is_refused_and_not_cut(engine: ServingEngine) -> None:
    with pytest.raises(InferenceError, match=r"\b302\b.*\b256\b|\b256\b.*\b(302|257)\b"):
        engine.embed([CAT, "word " * 300])

    assert engine.embed([CAT]).shape == (1, 384)


def test_half_a_character_is_refused(engine: ServingEngine) -> None:
    with pytest.raises(InferenceError):
        engine.embed(["\ud83e"])

    assert engine.embed([CAT]).shape == (1, 384)


def test_text_cannot_be_generated(engine: ServingEngine) -> None:
    with pytest.raises(InferenceError, match=r"model\.task=embed"):
        engine.infer(CAT)


def test_llamacpp_embeds_with_a_gguf() -> None:
    with launch("engine=llamacpp", "device=cpu", "model=smollm2", "model.task=embed") as engine:
        cat, kitten, shares = engine.embed([CAT, KITTEN, SHARES])

    assert (cat.shape, cat.dtype) == ((576,), np.dtype("float32"))
    np.testing.assert_allclose(np.linalg.norm(cat), 1, atol=1e-5)
    assert cat @ kitten > cat @ shares
