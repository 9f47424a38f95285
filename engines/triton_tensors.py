"""KServe v2 inference: arrays to a Triton model and back, over gRPC or over HTTP with binary tensors.

Source: https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data. JSON tensors would lose
NaN and infinity, and Triton takes no float16 in them. tritonclient's own HTTP client must not be used from two threads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from engines.base import InferenceError, Target
from engines.json_http import JsonHttp

if TYPE_CHECKING:
    import numpy

    Arrays = dict[str, numpy.ndarray[Any, Any]]

#: numpy's name → KServe's; "object" is an array of bytes
DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items() if dtype != "object"}
_WAYS = ("send", "receive")
_HEADER_LENGTH = "Inference-Header-Content-Length"


def bytes_array(texts: tuple[str, ...]) -> numpy.ndarray[Any, Any]:
    """Return the texts as a BYTES tensor."""
    import numpy

    return numpy.array([utf8(text) for text in texts], dtype=object)


def utf8(text: str) -> bytes:
    """Return `text` in UTF-8. Raises `InferenceError` if it holds half a character (a lone surrogate)."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InferenceError(f"the text holds half a character at {exc.start}: {text[exc.start :][:20]!r}") from exc


class GrpcTensors:
    """A client over one gRPC channel, which all threads share.

    It calls tritonclient's generated stub: tritonclient's own `infer` looks at every array's dtype several times, which
    is 5 % of the time of a small model's answer.
    """

    def __init__(self) -> None:
        self._channel: Any = None
        self._call: Any = None

    def infer(self, target: Target, inputs: Mapping[str, numpy.ndarray[Any, Any]]) -> Arrays:
        """Return the model's outputs by name. Raises `InferenceError`."""
        import grpc
        from tritonclient.grpc.service_pb2 import ModelInferRequest

        request = ModelInferRequest(
            model_name=target.model_id,
            inputs=[
                ModelInferRequest.InferInputTensor(name=name, datatype=_datatype(name, array), shape=array.shape)
                for name, array in inputs.items()
            ],
            raw_input_contents=[_raw(array) for array in inputs.values()],
        )
        try:
            response = self._open(target)(request, timeout=target.timeout_s)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNAVAILABLE:
                self._call = None  # a new channel is tried at once; an old one waits longer after each failure
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise InferenceError(f"no answer from {target.endpoints.grpc} for {target.timeout_s:g} s") from exc
            raise InferenceError(str(exc.details()), str(exc.code())) from exc
        return {
            output.name: _array(output.name, output.datatype, output.shape, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    def close(self) -> None:
        """Close the channel. The next request opens a new one."""
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            channel.close()

    def _open(self, target: Target) -> Any:
        call = self._call  # `close` may come from another thread
        if call is None:
            import grpc
            from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

            # A proxy has no place between us and a server that we started; tensors may be larger than gRPC's 4 MB.
            options = [("grpc.enable_http_proxy", 0), *((f"grpc.max_{way}_message_length", -1) for way in _WAYS)]
            self._channel = grpc.insecure_channel(str(target.endpoints.grpc), options)
            call = self._call = GRPCInferenceServiceStub(self._channel).ModelInfer
        return call


class HttpTensors(JsonHttp):
    """A client over HTTP: a JSON header, and the tensors' bytes behind it."""

    def infer(self, target: Target, inputs: Mapping[str, numpy.ndarray[Any, Any]]) -> Arrays:
        """Return the model's outputs by name. Raises `InferenceError`."""
        bodies = {name: _raw(array) for name, array in inputs.items()}
        header = json.dumps({
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": _datatype(name, array),
                    "parameters": {"binary_data_size": len(bodies[name])},
                }
                for name, array in inputs.items()
            ],
            "parameters": {"binary_data_output": True},
        }).encode()  # fmt: skip
        path = f"/v2/models/{target.model_id}/infer"
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
        with self._open(target, path, data=b"".join((header, *bodies.values())), headers=headers) as response:
            end = int(response.headers.get(_HEADER_LENGTH, len(response.content)))
            return _outputs(json.loads(response.content[:end]), memoryview(response.content)[end:])


def _outputs(header: Mapping[str, Any], content: memoryview) -> Arrays:
    outputs: Arrays = {}
    at = 0
    for output in header["outputs"]:
        size, name = output["parameters"]["binary_data_size"], output["name"]
        outputs[name] = _array(name, output["datatype"], output["shape"], content[at : at + size])
        at += size
    return outputs


def _array(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> numpy.ndarray[Any, Any]:
    import numpy

    if datatype not in _DTYPES:
        raise InferenceError(f"output {name!r} is {datatype}, which is no dtype of numpy")
    # A copy, because an array on the message's own memory can only be read.
    array: numpy.ndarray[Any, Any] = numpy.frombuffer(raw, _DTYPES[datatype]).reshape(shape).copy()
    return array


def _datatype(name: str, array: numpy.ndarray[Any, Any]) -> str:
    datatype = _datatypes().get(array.dtype.str)
    if datatype is None:
        raise InferenceError(f"input {name!r} is {array.dtype}, which Triton's tensors cannot carry")
    return datatype


@cache
def _datatypes() -> Mapping[str, str]:
    """Return KServe's names by numpy's `dtype.str`, which is quick to get.

    The byte order is in it: only this machine's own can be sent.
    """
    import numpy

    return {numpy.dtype(dtype).str: datatype for dtype, datatype in DATATYPES.items()}


def _raw(array: numpy.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject:  # each element behind its length in 4 bytes
        return b"".join(struct.pack("<I", len(item)) + item for item in array.reshape(-1))
    return array.tobytes()
