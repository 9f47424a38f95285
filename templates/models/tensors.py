"""Models of plain arrays, inside any engine: TorchScript, ONNX and compiled RBLN files behind one call.

x, total = Tensor("x", "float32", (-1, 4)), Tensor("total", "float32", (-1,))
model = load("/models/net.pt", "torchscript", "cpu", inputs=[x], outputs=[total])
model.run({"x": array})  # {"total": …}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensor_model import Signature, TensorModel

if TYPE_CHECKING:
    import numpy
    from tensor_model import Arrays


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
    """Load a torchscript, onnx or rbln file. Raises the library's errors, and `ValueError` in our own words.

    With `library`, a C library that native.py's table declares loads the file, whatever its format.
    `device` is cpu or cuda; for rbln it is rbln, or rbln:N for a file that was compiled for N devices. `threads` is the
    number for one request on a CPU; 0 leaves it to the library.
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
        if provider not in self._session.get_providers():  # onnxruntime falls back to the CPU with a warning in the log
            raise ValueError(f"device {device!r}: onnxruntime could not start {provider}; its log says why")
        self._same_names("input", self._session.get_inputs())
        self._same_names("output", self._session.get_outputs())

    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        answer = self._session.run([output.name for output in self.outputs], dict(arrays))
        return self._as_declared(answer)


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
