"""A tensor model's signature, and arrays that do or do not fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

from engines.base import ConfigError, InferenceError, TensorSpec
from launcher.config.schema import ModelConf, TensorConf
from launcher.planning import signatures
from launcher.serving.tensors import checked

INPUTS = (TensorSpec("x", "float32", (-1, 3)), TensorSpec("mask", "bool", (2,)))


def conf(**changes: Any) -> ModelConf:
    return ModelConf(id="m", source="file:/m", task="tensor", context_length=1, dtype="float32", chat=False, **changes)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    bias = helper.make_tensor_value_info("bias", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    weights = helper.make_tensor("bias", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "bias"], ["y"])], "g", [x, bias], [y], [weights])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_an_onnx_file_says_its_signature_and_weights_are_no_inputs(onnx_file: Path) -> None:
    assert signatures.of(conf(), "onnx", onnx_file) == (
        (TensorSpec("x", "float32", (-1, 3)),),
        (TensorSpec("y", "float32", (-1, 3)),),
    )


def test_what_is_declared_beats_what_the_file_says(onnx_file: Path) -> None:
    declared = conf(inputs=[TensorConf("a", "int64", [1])], outputs=[TensorConf("b", "float16", [-1, 2])])

    assert signatures.of(declared, "onnx", onnx_file) == (
        (TensorSpec("a", "int64", (1,)),),
        (TensorSpec("b", "float16", (-1, 2)),),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"model=m: a torchscript file does not say its inputs and outputs; declare them, such as model\.inputs="),
        ({"inputs": [TensorConf("a", "int64", [1])]}, "declare both model.inputs and model.outputs"),
        ({"inputs": [TensorConf("a", "int", [1])], "outputs": [TensorConf("b", "int64", [1])]},
         r"model\.inputs\[0\]\.dtype='int' is not known; known: bool, int8"),
        ({"inputs": [TensorConf("a", "int64", [0])], "outputs": [TensorConf("b", "int64", [1])]},
         r"model\.inputs\[0\]\.shape=\[0\]: a size is at least 1, or -1 for any"),
        ({"inputs": [TensorConf("a", "int64", [1])] * 2, "outputs": [TensorConf("b", "int64", [1])]},
         r"model\.inputs\[1\]\.name='a' is there twice"),
    ],
)  # fmt: skip
def test_a_signature_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        signatures.of(conf(**changes), "torchscript", Path("/m.pt"))


def test_a_file_that_is_not_there_or_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not been fetched yet; declare them"):
        signatures.of(conf(), "onnx", tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConfigError, match=r"bad\.onnx is no ONNX model"):
        signatures.of(conf(), "onnx", tmp_path / "bad.onnx")


def test_other_tasks_have_no_signature() -> None:
    text = ModelConf("m", "file:/m", None, "generate", 1, "float32", False)

    assert signatures.of(text, "safetensors", Path("/m")) == ((), ())
    text.inputs = [TensorConf("a", "int64", [1])]
    with pytest.raises(ConfigError, match=r"are for model\.task=tensor, not for generate"):
        signatures.of(text, "safetensors", Path("/m"))


def test_fitting_arrays_pass_in_the_models_order() -> None:
    x, mask = numpy.ones((5, 3), "float32"), numpy.array([True, False])

    assert [(name, array.tolist()) for name, array in checked({"mask": mask, "x": x}, INPUTS).items()] == [
        ("x", x.tolist()),
        ("mask", [True, False]),
    ]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": numpy.ones((1, 3), "float32")}, "input 'mask' is missing"),
        ({"x": numpy.ones((1, 3), "float32"), "mask": numpy.ones(2, "bool"), "y": 1}, "unknown input 'y'"),
        ({"x": numpy.ones((1, 3)), "mask": numpy.ones(2, "bool")}, "input 'x' is float64"),
        ({"x": numpy.ones((1, 4), "float32"), "mask": numpy.ones(2, "bool")}, "input 'x' has shape [1, 4]"),
        ({"x": numpy.ones(3, "float32"), "mask": numpy.ones(2, "bool")}, "input 'x' has shape [3]"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_whole_signature(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(InferenceError) as caught:
        checked(inputs, INPUTS)

    assert str(caught.value) == f"{words}; the model takes {{x: float32[any, 3], mask: bool[2]}}"
