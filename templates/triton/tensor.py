"""A Triton Python-backend model: arrays in, arrays out, as config.pbtxt declares them.

The launcher renders this file as `<repository>/<model>/1/model.py`, with config.pbtxt beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from hugging_face import threads_per_worker
from tensor_model import Tensor
from tensors import load
from triton_model import end_with_server, error_of, parameters, whole_number


class TritonPythonModel:
    """The class that Triton loads; each instance is a process of its own, with its own copy of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model and warm it up; Triton calls this once."""
        end_with_server()
        given, config = parameters(args), json.loads(args["model_config"])
        self._model = load(
            given["model_path"],
            given["model_format"],
            given["device"],
            inputs=[_tensor(tensor) for tensor in config["input"]],
            outputs=[_tensor(tensor) for tensor in config["output"]],
            threads=threads_per_worker(whole_number(given, "workers", default=1, low=1)),
            library=json.loads(given.get("library", "null")),
        )
        self._model.warm_up()

    def finalize(self) -> None:
        """Free the model; Triton calls this before it ends the process."""
        self._model.close()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Return a response to each request, the failed ones as errors."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        """Return the response; an exception becomes this request's error, so that it does not fell the others."""
        try:
            values = self._model.run({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in values.items()]
            )
        except Exception as exc:  # noqa: BLE001
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(*error_of(exc)))


def _tensor(declared: Mapping[str, Any]) -> Tensor:
    dtype = np.dtype(pb_utils.triton_string_to_numpy(declared["data_type"]))
    return Tensor(declared["name"], dtype.name, tuple(int(size) for size in declared["dims"]))
