"""A trivial Triton model with the tensors of our language models, which answers the prompt itself.

A benchmark with it measures the client and not a decoding loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        pass

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
            outputs = [pb_utils.Tensor("text_output", text)]
            if pb_utils.get_input_tensor_by_name(request, "return_num_output_tokens") is not None:
                outputs.append(pb_utils.Tensor("num_output_tokens", numpy.array([1], dtype=numpy.uint32)))
            answer = pb_utils.InferenceResponse(outputs)
            request.get_response_sender().send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
