"""A TorchServe handler: embeddings behind OpenAI's API.

The launcher packs this file into the model's archive, with the modules that it imports; `handler` in model-config.yaml
names the model to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedding import EmbeddingModel
from hugging_face import threads_per_worker
from openai_api import embeddings, is_list_of_models, list_of_models, pack, texts_to_embed
from torchserve_worker import JSON, Request, answer_each, end_at_once, loading


class EmbedHandler:
    """The class that TorchServe loads, the only one of this file. Each worker has its own copy of the model."""

    def initialize(self, context: Any) -> None:
        """Load the model and warm it up; TorchServe calls this once per worker."""
        with loading():
            import torch

            end_at_once()
            given = context.model_yaml_config["handler"]
            torch.set_num_threads(threads_per_worker(int(given["workers"])))
            self._name = context.model_name
            self._model = EmbeddingModel(
                str(Path(context.system_properties["model_dir"], given["model_path"])),
                device=given["device"],
                dtype=given["dtype"],
                max_context=given["max_context"],
            )
            self._model.warm_up()
            print(f"{given['model_path']}: {self._model.size} values, {self._model.context} tokens")

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Return the bytes of each answer; `data` are the requests of one batch."""
        return answer_each(data, context, self._answer)

    def _answer(self, request: Request) -> tuple[str, bytes]:
        if is_list_of_models(request):
            return JSON, list_of_models(self._name)
        texts, packed = texts_to_embed(request, self._name)
        vectors, tokens = self._model.embed(texts)
        rows = map(pack, vectors) if packed else vectors.tolist()
        return JSON, embeddings(rows, self._name, sum(tokens))
