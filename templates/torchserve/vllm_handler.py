"""A TorchServe handler: vLLM's engine behind OpenAI's API, streamed. It batches by itself.

The launcher packs this file into the model's archive, with its imports; `handler` in model-config.yaml has the
arguments of `AsyncEngineArgs`. Of vLLM only the engine is used: the modules of its own server move from one release to
the next. Run by hand on a CPU, not on a GPU or an NPU.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import threading
import traceback
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from bad_request import BadRequestError
from decoding import Sampling
from openai_api import Answer, Ask, is_list_of_models, list_of_models
from torchserve_worker import Request, end_at_once, loading
from turns import Reply, Turns


class VllmHandler:
    """The class that TorchServe loads, the only one of this file."""

    def initialize(self, context: Any) -> None:
        """Load the model and warm it up; TorchServe calls this once per worker."""
        end_at_once()
        with loading():
            logging.getLogger().setLevel(logging.WARNING)  # TorchServe's worker logs each turn
            given = context.model_yaml_config
            args = dict(given["handler"]["engine_args"])
            args["model"] = str(Path(context.system_properties["model_dir"], args["model"]))
            self._name = context.model_name
            # vLLM's tasks live in a loop of their own, beside the thread that talks to TorchServe.
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
            asyncio.run_coroutine_threadsafe(self._start(args), self._loop).result()
            self._turns = Turns(self._begin, given["batchSize"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Run one turn over the open requests (turns.py); TorchServe calls this again and again."""
        return self._turns.handle(data, context)

    async def _start(self, args: Mapping[str, Any]) -> None:
        from vllm import AsyncEngineArgs, AsyncLLMEngine

        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**args))
        atexit.register(self._engine.shutdown)  # its own processes hold the devices, and take seconds to end
        tokenizer = self._engine.get_tokenizer()  # a coroutine in some releases
        self._tokenizer = await tokenizer if inspect.isawaitable(tokenizer) else tokenizer
        self._context = int(self._engine.model_config.max_model_len)
        async for _ in self._pieces([0], Sampling(max_tokens=1, temperature=0), "warm-up"):
            pass

    def _begin(self, request: Request, reply: Reply) -> None:
        asyncio.run_coroutine_threadsafe(self._answer(request, reply), self._loop)

    async def _answer(self, request: Request, reply: Reply) -> None:
        with reply.failures():
            try:
                if is_list_of_models(request):
                    reply.finish(list_of_models(self._name))
                else:
                    await self._generate(Ask.of(request, self._name), reply)
            except Exception:
                if self._engine.errored:  # it does not recover; TorchServe starts another worker
                    traceback.print_exc()
                    os._exit(1)
                raise

    async def _generate(self, ask: Ask, reply: Reply) -> None:
        answer = Answer(ask, self._name)
        prompt = self._prompt(ask)
        reply.accept()
        made: list[str] = []
        finish_reason, tokens = None, 0
        async with aclosing(self._pieces(prompt, ask.sampling, answer.id)) as pieces:
            async for piece in pieces:
                reply.check()
                tokens += len(piece.token_ids)
                finish_reason = piece.finish_reason
                if ask.stream:
                    reply.send(answer.event(piece.text, finish_reason))
                else:
                    made.append(piece.text)
        counts = (len(prompt), tokens)
        reply.finish(answer.end(counts) if ask.stream else answer.whole("".join(made), finish_reason, counts))

    def _prompt(self, ask: Ask) -> list[int]:
        """Return the tokens of a text, or of messages with the model's chat template. Raises `BadRequestError`."""
        if ask.messages is None:
            tokens = list(self._tokenizer.encode(ask.text))
        else:
            tokens = list(self._tokenizer.encode(self._apply_chat_template(ask.messages), add_special_tokens=False))
        if not tokens:
            raise BadRequestError("the prompt has no tokens")
        if len(tokens) >= self._context:
            raise BadRequestError(
                f"the prompt has {len(tokens)} tokens, but the context is {self._context} tokens "
                "and must also hold the answer"
            )
        return tokens

    def _apply_chat_template(self, messages: list[dict[str, object]]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise BadRequestError("this model has no chat template for messages; send a prompt")
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as exc:  # templates raise for roles in an order they do not know
            raise BadRequestError(f"the chat template refuses these messages: {exc}") from exc

    async def _pieces(self, prompt: list[int], sampling: Sampling, name: str) -> AsyncGenerator[Any, None]:
        """Yield vLLM's outputs, each with its new text only; closing the iterator cancels the request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(sampling.max_tokens, self._context - len(prompt)),
            stop=list(sampling.stop),
            seed=sampling.seed,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self._engine.generate({"prompt_token_ids": prompt}, params, name)) as outputs:
            async for output in outputs:
                yield output.outputs[0]
