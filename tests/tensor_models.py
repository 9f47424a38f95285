"""Small models of plain arrays, made here: the same one as ONNX and as TorchScript, and one that has every dtype.

SUM = A + B, and DOUBLE = 2 × B: two inputs, two outputs, three dtypes, one size that is free.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from launcher.paths import cache_root
from launcher.planning import environments
from launcher.planning.machine import this_machine
from launcher.planning.settle import settle
from launcher.prepare.environments import ensure
from launcher.progress import Progress

#: what the file of the TorchScript model does not say, as overrides; the ONNX file says the same
SIGNATURE = (
    "model.inputs=[{name: A, dtype: float32, shape: [-1, 3]}, {name: B, dtype: int32, shape: [3]}]",
    "model.outputs=[{name: SUM, dtype: float32, shape: [-1, 3]}, {name: DOUBLE, dtype: int64, shape: [3]}]",
)

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)

_MAKER = Path(__file__).with_name("torchscript_models.py")


def expected(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What the model computes, by numpy."""
    return {"SUM": (a + b).astype("float32"), "DOUBLE": 2 * b.astype("int64")}


def onnx_model(folder: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["B"], ["B_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["A", "B_float"], ["SUM"]),
        helper.make_node("Cast", ["B"], ["B_long"], to=TensorProto.INT64),
        helper.make_node("Add", ["B_long", "B_long"], ["DOUBLE"]),
    ]
    inputs = [_value("A", "float32", ["rows", 3]), _value("B", "int32", [3])]
    outputs = [_value("SUM", "float32", ["rows", 3]), _value("DOUBLE", "int64", [3])]
    return _saved(folder / "sum.onnx", nodes, inputs, outputs)


def onnx_of_every_dtype(folder: Path) -> Path:
    """in_<dtype> → out_<dtype>, unchanged."""
    nodes = [helper.make_node("Identity", [f"in_{dtype}"], [f"out_{dtype}"]) for dtype in DTYPES]
    inputs, outputs = ([_value(f"{way}_{dtype}", dtype, ["n", 2]) for dtype in DTYPES] for way in ("in", "out"))
    return _saved(folder / "every.onnx", nodes, inputs, outputs)


def torchscript_models(folder: Path) -> Path:
    """The folder of as_tuple.pt, as_dict.pt and half.pt, made where torch is: in the environment that converts."""
    converter = settle(["engine=triton", "device=cpu"], this_machine()).config.builders["convert"]
    environment = environments.describe("convert", "managed", converter, cache_root())
    ensure(environment, Progress(quiet=True))
    subprocess.run([f"{environment.bin}/python", "-W", "ignore", str(_MAKER), str(folder)], check=True)
    return folder


def _value(name: str, dtype: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _saved(
    file: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> Path:
    graph = helper.make_graph(nodes, file.stem, inputs, outputs)
    # As old as the operators allow, so that every ONNX Runtime reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file
