"""The signature of a tensor model: declared, or read from a file that says it; and arrays checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import ConfigError, InferenceError, TensorSpec
from launcher.config.schema import ModelConf, TensorConf

if TYPE_CHECKING:
    import numpy

Signature = tuple[TensorSpec, ...]

#: what every engine that serves tensors can carry
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_EXAMPLE = "model.inputs=[{name: x, dtype: float32, shape: [-1, 4]}]"


def of(conf: ModelConf, model_format: str, file: Path) -> tuple[Signature, Signature]:
    """The inputs and outputs of the model; both () for a task other than tensor.

    Raises `ConfigError` where they are neither declared nor in the file.
    """
    if conf.task != "tensor":
        if conf.inputs or conf.outputs:
            raise ConfigError(f"model.inputs and model.outputs are for model.task=tensor, not for {conf.task}")
        return (), ()
    if conf.inputs and conf.outputs:
        return _declared("inputs", conf.inputs), _declared("outputs", conf.outputs)
    if conf.inputs or conf.outputs:
        raise ConfigError(f"model={conf.id}: declare both model.inputs and model.outputs, such as {_EXAMPLE}")
    if model_format != "onnx":
        raise ConfigError(
            f"model={conf.id}: a {model_format} file does not say its inputs and outputs; declare them, such as "
            f"{_EXAMPLE}"
        )
    if not file.exists():
        raise ConfigError(
            f"model={conf.id}: inputs and outputs are read from the file, and {file} has not been fetched yet; declare "
            f"them, such as {_EXAMPLE}"
        )
    return _of_onnx(conf.id, file)


def example(spec: TensorSpec) -> numpy.ndarray[Any, Any]:
    """Zeros that fit `spec`; any size is 1."""
    import numpy

    return numpy.zeros([max(size, 1) for size in spec.shape], spec.dtype)


def checked(inputs: Mapping[str, Any], expected: Signature) -> dict[str, numpy.ndarray[Any, Any]]:
    """`inputs` as arrays, in the model's order. Raises `InferenceError` that shows the whole signature."""
    import numpy

    signature = f"the model takes {{{', '.join(map(str, expected))}}}"
    names = [spec.name for spec in expected]
    if missing := [name for name in names if name not in inputs]:
        raise InferenceError(f"input {missing[0]!r} is missing; {signature}")
    if unknown := [name for name in inputs if name not in names]:
        raise InferenceError(f"unknown input {unknown[0]!r}; {signature}")
    arrays = {}
    for spec in expected:
        array = numpy.asarray(inputs[spec.name])
        if array.dtype != numpy.dtype(spec.dtype):
            raise InferenceError(f"input {spec.name!r} is {array.dtype}; {signature}")
        if not _fits(array.shape, spec.shape):
            raise InferenceError(f"input {spec.name!r} has shape {list(array.shape)}; {signature}")
        arrays[spec.name] = array
    return arrays


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))


def _declared(key: str, tensors: Sequence[TensorConf]) -> Signature:
    specs = tuple(TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    for number, spec in enumerate(specs):
        where = f"model.{key}[{number}]"
        if spec.dtype not in DTYPES:
            raise ConfigError(f"{where}.dtype={spec.dtype!r} is not known; known: {', '.join(DTYPES)}")
        if any(size == 0 or size < -1 for size in spec.shape):
            raise ConfigError(f"{where}.shape={list(spec.shape)}: a size is at least 1, or -1 for any")
        if any(other.name == spec.name for other in specs[:number]):
            raise ConfigError(f"{where}.name={spec.name!r} is there twice")
    return specs


def _of_onnx(model_id: str, file: Path) -> tuple[Signature, Signature]:
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as exc:  # protobuf's own error is private to its implementation
        raise ConfigError(f"model={model_id}: {file} is no ONNX model: {exc}") from exc
    weights = {tensor.name for tensor in graph.initializer}  # older files list them among the inputs
    inputs = [value for value in graph.input if value.name not in weights]
    return tuple(map(_onnx_tensor, inputs)), tuple(map(_onnx_tensor, graph.output))


def _onnx_tensor(value: Any) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    dtype = str(tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "none"
    if dtype not in DTYPES:
        raise ConfigError(f"tensor {value.name!r} of the ONNX file has dtype {dtype}; known: {', '.join(DTYPES)}")
    sizes = (dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in kind.shape.dim)
    return TensorSpec(value.name, dtype, tuple(sizes))
