"""Models of plain arrays, inside any engine: TorchScript, ONNX and compiled RBLN files behind one call.

x, total = Tensor("x", "float32", (-1, 4)), Tensor("total", "float32", (-1,))
model = load("/models/net.pt", "torchscript", "cpu", inputs=[x], outputs=[total])
model.run({"x": array})  # {"total": …}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bad_request import BadRequestError

if TYPE_CHECKING:
    import numpy

    Arrays = Mapping[str, "numpy.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; `dtype` is numpy's name, and -1 in `shape` stands for any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('any' if size < 0 else str(size) for size in self.shape)}]"

    def mismatch(self, array: numpy.ndarray[Any, Any]) -> str:
        """What is wrong with `array`; an empty string where it fits."""
        if array.dtype.name != self.dtype:
            return f"is {array.dtype.name}"
        sizes = zip(array.shape, self.shape, strict=False)
        if array.ndim != len(self.shape) or any(want not in (-1, have) for have, want in sizes):
            return f"has shape {list(array.shape)}"
        return ""


Signature = Sequence[Tensor]


class TensorModel(ABC):
    """A loaded model; `inputs` and `outputs` are in the order of the model's own arguments."""

    def __init__(self, inputs: Signature, outputs: Signature) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def run(self, arrays: Arrays) -> Arrays:
        """Compute every output.

        Raises `BadRequestError` where `arrays` are not what the model takes, `ValueError` where it gives something else
        than was declared, and what the model itself raises.
        """
        self._check(arrays)
        answers = dict(zip([output.name for output in self.outputs], self._compute(arrays), strict=True))
        for output in self.outputs:
            if wrong := output.mismatch(answers[output.name]):
                raise ValueError(f"output {output.name!r} {wrong}, but {output} is declared")
        return answers

    def warm_up(self) -> None:
        """Compute zeros, so that a model which is not as declared fails at load, not in a request."""
        import numpy

        zeros = {tensor.name: numpy.zeros([abs(size) for size in tensor.shape], tensor.dtype) for tensor in self.inputs}
        try:
            self.run(zeros)
        except Exception as exc:
            takes = ", ".join(map(str, self.inputs))
            raise ValueError(f"cannot compute zeros, with 1 for any size ({takes}): {exc}") from exc

    def close(self) -> None:
        """Give back what the model holds outside of Python. A second call does nothing."""

    @abstractmethod
    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        """As many arrays as there are outputs, in their order."""

    def _check(self, arrays: Arrays) -> None:
        takes = f"the model takes {{{', '.join(map(str, self.inputs))}}}"
        names = [tensor.name for tensor in self.inputs]
        if unknown := [name for name in arrays if name not in names]:
            raise BadRequestError(f"unknown input {unknown[0]!r}; {takes}")
        for tensor in self.inputs:
            if tensor.name not in arrays:
                raise BadRequestError(f"input {tensor.name!r} is missing; {takes}")
            if wrong := tensor.mismatch(arrays[tensor.name]):
                raise BadRequestError(f"input {tensor.name!r} {wrong}; {takes}")

    def _as_declared(self, answer: Any) -> list[Any]:
        """What a model returned (one tensor, several, or a dict of them) as a list in the order of the outputs."""
        names = [output.name for output in self.outputs]
        if isinstance(answer, dict):
            if missing := [name for name in names if name not in answer]:
                raise ValueError(f"the model returns {', '.join(map(str, answer))}, but {missing[0]!r} is declared")
            return [answer[name] for name in names]
        values = list(answer) if isinstance(answer, (tuple, list)) else [answer]
        if len(values) != len(names):
            raise ValueError(
                f"the model returns {len(values)} tensors, but {len(names)} are declared: {', '.join(names)}"
            )
        return values


def load(
    path: str,
    model_format: str,
    device: str,
    *,
    inputs: Signature,
    outputs: Signature,
    threads: int = 0,
    library: Mapping[str, Any] | None = None,
) -> TensorModel:
    """Load a torchscript, onnx or rbln file. Raises what the library raises, and `ValueError` in our own words.

    With `library`, a C library that native.py's table declares loads the file, whatever its format.
    `device` is cpu or cuda; for rbln it is rbln, or rbln:N for a file that was compiled for N devices. `threads` are
    those that one request may use on a CPU; 0 leaves it to the library.
    """
    if library:
        from native import Native

        return Native(path, inputs, outputs, library)
    if model_format not in _KINDS:
        raise ValueError(f"model_format {model_format!r} is not one of {', '.join(_KINDS)}")
    return _KINDS[model_format](path, device, inputs, outputs, threads)


class TorchScript(TensorModel):
    """A file of `torch.jit.save`: inputs by position; a tensor, a tuple or list, or a dict comes back."""

    def __init__(self, path: str, device: str, inputs: Signature, outputs: Signature, threads: int) -> None:
        import torch

        super().__init__(inputs, outputs)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device!r}: torch {torch.__version__} sees no GPU")
        if threads:
            torch.set_num_threads(threads)
        self._device = device
        self._module = torch.jit.load(path, map_location=device).eval()

    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        import numpy
        import torch

        # Copied: what a server hands over may be read-only, and a model may write into its inputs.
        copies = [numpy.array(arrays[tensor.name], order="C") for tensor in self.inputs]
        given = [torch.from_numpy(copy).to(self._device) for copy in copies]
        with torch.inference_mode():
            values = [torch.as_tensor(value) for value in self._as_declared(self._module(*given))]
        # numpy has no bfloat16; float32 holds every value of it.
        return [(value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy() for value in values]


class Onnx(TensorModel):
    """An ONNX file in ONNX Runtime: inputs and outputs by name."""

    def __init__(self, path: str, device: str, inputs: Signature, outputs: Signature, threads: int) -> None:
        import onnxruntime

        super().__init__(inputs, outputs)
        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(f"device {device!r}: this build of onnxruntime has no {provider}")
        if provider == "CUDAExecutionProvider":
            onnxruntime.preload_dlls()  # CUDA's and cuDNN's, which torch brings along
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        if provider not in self._session.get_providers():  # it falls back to the CPU with a warning in the log
            raise ValueError(f"device {device!r}: onnxruntime could not start {provider}; its log says why")
        _same_names("input", self.inputs, self._session.get_inputs())
        _same_names("output", self.outputs, self._session.get_outputs())

    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        answer = self._session.run([output.name for output in self.outputs], dict(arrays))
        return self._as_declared(answer)


def _same_names(what: str, declared: Signature, found: Sequence[Any]) -> None:
    there = [value.name for value in found]
    if missing := [tensor.name for tensor in declared if tensor.name not in there]:
        raise ValueError(f"the file has no {what} {missing[0]!r}, which is declared; it has {', '.join(there)}")
    named = [tensor.name for tensor in declared]
    if what == "input" and (extra := [name for name in there if name not in named]):
        raise ValueError(f"the file has an input {extra[0]!r}, which is not declared; declared: {', '.join(named)}")


class Rbln(TensorModel):
    """A file of rebel-compiler: inputs by position, of the shapes that it was compiled for.

    Not run on an NPU: `rebel.Runtime` is used as Rebellions' model zoo and optimum-rbln use it.
    """

    def __init__(self, path: str, device: str, inputs: Signature, outputs: Signature, threads: int) -> None:  # noqa: ARG002
        import rebel

        super().__init__(inputs, outputs)
        count = int(device.partition(":")[2] or 1)
        # Numbers count within RBLN_VISIBLE_DEVICES; a list is for files that were compiled for several.
        self._runtime = rebel.Runtime(path, tensor_type="np", device=0 if count == 1 else list(range(count)))

    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        import numpy

        answer = self._runtime.run(*(numpy.ascontiguousarray(arrays[tensor.name]) for tensor in self.inputs))
        return self._as_declared(answer)


_KINDS: Mapping[str, Callable[[str, str, Signature, Signature, int], TensorModel]] = {
    "torchscript": TorchScript,
    "onnx": Onnx,
    "rbln": Rbln,
}
