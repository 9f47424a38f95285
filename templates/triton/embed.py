"""A Triton Python-backend model: embeddings.

text_input (any number of texts) → embedding (float32, a row per text), and num_input_tokens of each. The launcher
renders this file as `<repository>/<model>/1/model.py`, with config.pbtxt beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils
from embedding import EmbeddingModel
from hugging_face import threads_per_worker
from triton_model import end_with_server, error_of, parameters, text_of, whole_number


class TritonPythonModel:
    """The class that Triton loads; each instance is a process of its own, with its own copy of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model and warm it up; Triton calls this once."""
        import torch

        end_with_server()
        given = parameters(args)
        torch.set_num_threads(threads_per_worker(whole_number(given, "workers", default=1, low=1)))
        self._model = EmbeddingModel(
            given["model_path"],
            device=given.get("device", "cpu"),
            dtype=given.get("dtype", "auto"),
            max_context=whole_number(given, "max_context", default=0, low=0),
        )
        self._model.warm_up()
        pb_utils.Logger.log_info(f"{given['model_path']}: {self._model.size} values, {self._model.context} tokens")

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Return a response to each request, the failed ones as errors."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        """Return the response; an exception becomes this request's error, so that it does not fell the others."""
        try:
            values = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)
            vectors, tokens = self._model.embed([text_of("text_input", value) for value in values])
            counts = pb_utils.Tensor("num_input_tokens", np.array(tokens, dtype=np.uint32))
            return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", vectors), counts])
        except Exception as exc:  # noqa: BLE001
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(*error_of(exc)))
