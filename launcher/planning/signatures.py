"""The inputs and outputs of a tensor model: declared, or read from a file that has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import ConfigError, TensorSpec
from launcher.config.schema import ModelConf, TensorConf

if TYPE_CHECKING:
    pass

Signature = tuple[TensorSpec, ...]

#: dtypes that every engine for tensors can carry
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_EXAMPLE = "model.inputs=[{name: x, dtype: float32, shape: [-1, 4]}]"


def of(conf: ModelConf, model_format: str, file: Path) -> tuple[Signature, Signature]:
    """Return the inputs and outputs of the model; both () for a task other than tensor.

    Raises `ConfigError` if they are neither declared nor in the file.
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
