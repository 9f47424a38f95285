"""Tensors through every engine that serves them here: real servers, one client, compared with numpy."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import DeploymentError, InferenceError
from launcher import launch
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase
from tests.tensor_models import DTYPES, SIGNATURE, expected, onnx_model, onnx_of_every_dtype, torchscript_models

# The first start makes an environment.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ENGINES = ["engine=triton engine.protocol=grpc", "engine=triton engine.protocol=http", "engine=torchserve"]
MODELS = ["sum.onnx", "as_tuple.pt", "as_dict.pt", "half.pt"]

A = np.array([[1.5, -2, 3], [0, 0.25, np.inf]], "float32")
B = np.array([1, -2, 2**20], "int32")


def name_of(engine: str) -> str:
    return engine.replace("engine.", "").replace("engine=", "")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_model(folder)
    onnx_of_every_dtype(folder)
    return torchscript_models(folder)


def words_for(engine: str, file: Path, signature: tuple[str, ...] = ()) -> list[str]:
    return [*engine.split(), "device=cpu", f"model.source=file:{file}", "model.id=net", "model.task=tensor", *signature]


@pytest.fixture(scope="module", params=ENGINES, ids=name_of)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Path
) -> Iterator[ServingEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        with launch(*words_for(request.param, models / "sum.onnx")) as serving:
            yield serving


def assert_equal(found: dict[str, np.ndarray[Any, Any]], wanted: dict[str, np.ndarray[Any, Any]]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("file", MODELS)
@pytest.mark.parametrize("name", ENGINES, ids=name_of)
def test_a_model_of_every_kind_computes_what_numpy_does(models: Path, name: str, file: str) -> None:
    signature = () if file.endswith(".onnx") else SIGNATURE
    # Half of the numbers, in bfloat16: 1.5 + 1 is one of its values, and so are the others.
    a = np.array([[1.5, -2, 3]], "float32")
    b = np.array([1, -2, 4], "int32")

    with launch(*words_for(name, models / file, signature)) as serving:
        assert_equal(serving.infer({"A": a, "B": b}), expected(a, b))


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_a_free_size_takes_any(engine: ServingEngine, rows: int) -> None:
    a = np.arange(rows * 3, dtype="float32").reshape(rows, 3)

    assert_equal(engine.infer({"A": a, "B": B}), expected(a, B))


def test_numbers_that_json_lacks_come_back_as_they_went(engine: ServingEngine) -> None:
    a = np.array([[np.nan, np.inf, -np.inf], [np.finfo("float32").tiny, 1e-45, -0.0]], "float32")
    b = np.zeros(3, "int32")

    assert_equal(engine.infer({"A": a, "B": b}), expected(a, b))


def test_the_order_of_the_inputs_and_of_memory_does_not_matter(engine: ServingEngine) -> None:
    a = np.asfortranarray(A)[::-1]

    assert_equal(engine.infer({"B": B[::-1], "A": a}), expected(a, B[::-1]))


def test_an_answer_can_be_written_to(engine: ServingEngine) -> None:
    answer = engine.infer({"A": A, "B": B})["DOUBLE"]
    answer += 1

    assert answer.tolist() == (2 * B.astype("int64") + 1).tolist()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"A": A}, "input 'B' is missing"),
        ({"A": A, "B": B, "C": B}, "unknown input 'C'"),
        ({"A": A.astype("float64"), "B": B}, "input 'A' is float64"),
        ({"A": A[:, :2], "B": B}, r"input 'A' has shape \[2, 2\]"),
        ({"A": A, "B": B[None]}, r"input 'B' has shape \[1, 3\]"),
        ({}, "input 'A' is missing"),
    ],
)
def test_what_the_model_does_not_take_is_refused_with_what_it_takes(
    engine: ServingEngine, inputs: dict[str, np.ndarray[Any, Any]], words: str
) -> None:
    with pytest.raises(InferenceError, match=rf"{words}; the model takes {{A: float32\[any, 3\], B: int32\[3\]}}"):
        engine.infer(inputs)

    assert engine.health_check()


@pytest.mark.parametrize("name", ENGINES, ids=name_of)
def test_every_dtype_goes_there_and_back(models: Path, name: str) -> None:
    values = {dtype: np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype) for dtype in DTYPES}
    values["float16"] *= np.float16(0.333)
    values["int64"] -= 2**62
    values["uint64"] += np.uint64(2**63)

    with launch(*words_for(name, models / "every.onnx")) as serving:
        answer = serving.infer({f"in_{dtype}": array for dtype, array in values.items()})

    assert_equal(answer, {f"out_{dtype}": array for dtype, array in values.items()})


@pytest.mark.parametrize("name", ENGINES, ids=name_of)
def test_a_client_goes_on_after_the_engine_was_killed_and_restarted(models: Path, name: str) -> None:
    with launch(*words_for(name, models / "sum.onnx")) as serving:
        before = serving.infer({"A": A, "B": B})
        pid = serving.news.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while not (serving.news.starts == 2 and serving.news.phase is Phase.READY):  # until the test's own timeout
            with contextlib.suppress(InferenceError):  # asked in vain meanwhile, which must not delay it afterwards
                serving.infer({"A": A, "B": B})

        assert_equal(serving.infer({"A": A, "B": B}), before)


@pytest.mark.parametrize("name", [ENGINES[0]], ids=name_of)
def test_a_declaration_that_is_not_true_ends_the_launch_and_its_log_says_why(models: Path, name: str) -> None:
    inputs, outputs = SIGNATURE
    untrue = (inputs, outputs.replace("DOUBLE, dtype: int64", "DOUBLE, dtype: int16"))
    serving = launch(*words_for(name, models / "as_tuple.pt", untrue))

    with pytest.raises(DeploymentError) as caught:
        serving.start()

    log = Path(str(caught.value).partition("log: ")[2].splitlines()[0]).read_text()
    assert "output 'DOUBLE' is int64, but DOUBLE: int16[3] is declared" in log


@pytest.mark.parametrize("name", [ENGINES[0], ENGINES[2]], ids=name_of)
def test_a_transformer_is_exported_and_served_as_tensors(name: str) -> None:
    tokens = np.array([[101, 7592, 102, 0], [101, 2088, 999, 102]], "int64")
    mask = (tokens > 0).astype("int64")

    with launch(*name.split(), "device=cpu", "model=minilm", "model.task=tensor") as serving:
        padded = serving.infer({"input_ids": tokens, "attention_mask": mask})["last_hidden_state"]
        alone = serving.infer({"input_ids": tokens[:1, :3], "attention_mask": mask[:1, :3]})["last_hidden_state"]
        assert serving.plan.builds[0].name == "safetensors-to-onnx"

    assert (padded.shape, alone.shape, padded.dtype) == ((2, 4, 384), (1, 3, 384), np.float32)
    np.testing.assert_allclose(padded[:1, :3], alone, atol=1e-4)  # what is masked does not count
    assert np.abs(alone).max() > 0.1
