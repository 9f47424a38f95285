"""Tensor models by their signature, without the libraries that compute: what goes in, what must come out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bad_request import BadRequestError
from tensor_model import Tensor, TensorModel
from tensors import load

X, Y = Tensor("x", "float32", (-1, 2)), Tensor("y", "int64", (1,))
SUM = Tensor("sum", "float32", (-1, 2))

Array = np.ndarray[Any, Any]


class Adding(TensorModel):
    def _compute(self, arrays: Mapping[str, Array]) -> Sequence[Array]:
        return self._as_declared((arrays["x"] + arrays["y"]).astype("float32"))


class Saying(TensorModel):
    """A model that returns what it is made with."""

    answer: Any = None

    def _compute(self, arrays: Mapping[str, Array]) -> Sequence[Array]:  # noqa: ARG002
        return self._as_declared(self.answer)


def saying(answer: Any, *outputs: Tensor) -> TensorModel:
    model = Saying([], outputs)
    model.answer = answer
    return model


def test_arrays_go_in_and_come_out_by_name() -> None:
    answer = Adding([X, Y], [SUM]).run({"x": np.ones((3, 2), "float32"), "y": np.array([2])})

    assert list(answer) == ["sum"]
    np.testing.assert_array_equal(answer["sum"], np.full((3, 2), 3, "float32"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((3, 2), "float32")}, "input 'y' is missing"),
        ({"x": np.ones((3, 2), "float32"), "y": np.array([2]), "z": np.array([2])}, "unknown input 'z'"),
        ({"x": np.ones((3, 2), "float64"), "y": np.array([2])}, "input 'x' is float64"),
        ({"x": np.ones((3, 3), "float32"), "y": np.array([2])}, r"input 'x' has shape \[3, 3\]"),
        ({"x": np.ones(2, "float32"), "y": np.array([2])}, r"input 'x' has shape \[2\]"),
        ({"x": np.ones((3, 2, 1), "float32"), "y": np.array([2])}, r"input 'x' has shape \[3, 2, 1\]"),
    ],
)
def test_what_the_model_does_not_take_is_the_clients_fault(arrays: dict[str, Array], words: str) -> None:
    with pytest.raises(BadRequestError, match=rf"^{words}; the model takes {{x: float32\[any, 2\], y: int64\[1\]}}$"):
        Adding([X, Y], [SUM]).run(arrays)


@pytest.mark.parametrize(
    ("answer", "outputs"),
    [
        (np.zeros(1, "int64"), [Y]),
        ([np.zeros(1, "int64")], [Y]),
        ((np.zeros((0, 2), "float32"), np.zeros(1, "int64")), [SUM, Y]),
        ({"y": np.zeros(1, "int64"), "more": np.zeros(1), "sum": np.zeros((4, 2), "float32")}, [SUM, Y]),
    ],
    ids=["one", "a list of one", "a tuple", "a dict"],
)
def test_whatever_a_model_returns_becomes_the_declared_outputs(answer: Any, outputs: list[Tensor]) -> None:
    found = saying(answer, *outputs).run({})

    assert {name: array.dtype.name for name, array in found.items()} == {
        output.name: output.dtype for output in outputs
    }


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros(1, "int32"), r"output 'y' is int32, but y: int64\[1\] is declared"),
        (np.zeros(2, "int64"), r"output 'y' has shape \[2\], but y: int64\[1\] is declared"),
        ((np.zeros(1, "int64"), np.zeros(1)), "the model returns 2 tensors, but 1 are declared: y"),
        ({"z": np.zeros(1, "int64")}, "the model returns z, but 'y' is declared"),
    ],
)
def test_an_answer_other_than_declared_is_the_models_fault(answer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        saying(answer, Y).run({})

    assert not isinstance(caught.value, BadRequestError)


def test_a_model_that_cannot_compute_zeros_fails_while_it_is_loaded() -> None:
    wanted = (
        r"^cannot compute zeros, with 1 for any size \(x: float32\[any, 2\], y: int64\[1\]\): output 'sum' is float32"
    )

    Adding([X, Y], [SUM]).warm_up()
    with pytest.raises(ValueError, match=wanted):
        Adding([X, Y], [Tensor("sum", "float64", (-1, 2))]).warm_up()


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="model_format 'gguf' is not one of torchscript, onnx, rbln"):
        load("/m", "gguf", "cpu", inputs=[X], outputs=[Y])


@pytest.mark.parametrize(("device", "wanted"), [("rbln", 0), ("rbln:1", 0), ("rbln:4", [0, 1, 2, 3])])
def test_an_rbln_file_runs_on_as_many_devices_as_it_was_compiled_for(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: object
) -> None:
    """`rebel` needs an account: a stand-in with the calls that its vendor's samples make."""
    seen: list[object] = []

    class Runtime:
        def __init__(self, path: str, **options: object) -> None:
            seen.append((path, options))

        def run(self, *arrays: Array) -> list[Array]:
            seen.append([array.dtype.name for array in arrays])
            return [np.zeros((1, 2), "float32")]

    rebel = ModuleType("rebel")
    vars(rebel)["Runtime"] = Runtime
    monkeypatch.setitem(sys.modules, "rebel", rebel)

    load("/m.rbln", "rbln", device, inputs=[X, Y], outputs=[SUM]).warm_up()

    assert seen == [("/m.rbln", {"tensor_type": "np", "device": wanted}), ["float32", "int64"]]
