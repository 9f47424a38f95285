"""A TorchServe handler: a Hugging Face causal language model behind OpenAI's API, streamed.

The launcher packs this file into the model's archive, with the modules that it imports. Requests run side by side in
threads that share the model; `handler` in model-config.yaml names the model to load.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hugging_face import threads_per_worker
from language_model import LanguageModel, pieces
from openai_api import Answer, Ask, is_list_of_models, list_of_models
from torchserve_worker import Request, end_at_once, loading
from turns import Reply, Turns


class GenerateHandler:
    """The class that TorchServe loads, the only one of this file."""

    def initialize(self, context: Any) -> None:
        """Load the model and warm it up; TorchServe calls this once per worker."""
        with loading():
            import torch

            end_at_once()
            # TorchServe's worker logs each turn, and a metric of how long it took, which says nothing.
            logging.getLogger().setLevel(logging.WARNING)
            given = context.model_yaml_config["handler"]
            workers = int(given["workers"])
            threads = threads_per_worker(workers)
            torch.set_num_threads(threads)
            self._name = context.model_name
            self._model = LanguageModel(
                str(Path(context.system_properties["model_dir"], given["model_path"])),
                device=given["device"],
                dtype=given["dtype"],
                max_context=given["max_context"],
            )
            self._model.warm_up()
            # torch keeps the thread count per thread, so each worker sets its own.
            self._pool = ThreadPoolExecutor(workers, "generate", torch.set_num_threads, (threads,))
            self._turns = Turns(lambda request, reply: self._pool.submit(self._answer, request, reply), workers)
            print(f"{given['model_path']}: context {self._model.context}, {workers} workers of {threads} torch threads")

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Run one turn over the open requests (turns.py); TorchServe calls this again and again."""
        return self._turns.handle(data, context)

    def _answer(self, request: Request, reply: Reply) -> None:
        with reply.failures():
            reply.check()  # it may have waited long for a thread
            if is_list_of_models(request):
                reply.finish(list_of_models(self._name))
            else:
                self._generate(Ask.of(request, self._name), reply)

    def _generate(self, ask: Ask, reply: Reply) -> None:
        answer = Answer(ask, self._name)
        prompt = self._model.prompt(ask.text, ask.messages)
        reply.accept()
        made: list[str] = []
        finish_reason, tokens = None, 0
        for piece in pieces(self._model, prompt.tokens, ask.sampling, reply.check):
            tokens += piece.tokens
            finish_reason = piece.finish_reason
            if ask.stream:
                reply.send(answer.event(piece.text, finish_reason))
            else:
                made.append(piece.text)
        counts = (len(prompt.tokens), tokens)
        reply.finish(answer.end(counts) if ask.stream else answer.whole("".join(made), finish_reason, counts))
