"""Start `transformers serve`, the server of Transformers 5.23, with what it leaves undone.

    python serve.py --served-model-name smollm2 --max-context 2048 --drain-s 8 MODEL --host 127.0.0.1 --port 8000

The words that are not named below are those of `transformers serve`. What is different:

- A prompt that is empty or longer than the context is refused. The server would decode for hours; with continuous
  batching one empty prompt ends its worker for good.
- `temperature`, `top_k` and `seed` are obeyed, each for its own request. The server samples only where the model's
  own settings say so, refuses `top_k`, and seeds whatever else is being decoded.
- The text ends before a stop string. The server ends after it, and with continuous batching ignores it.
- What fails is told in JSON, not as "Internal Server Error".
- The key in the variable TRANSFORMERS_SERVE_API_KEY is demanded.
- The model goes by the name that it is given, and /v1/models lists it. Paths that load other models or drop this one
  are gone.

It runs inside the engine's own environment, beside decoding.py.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hmac
import json
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from decoding import StopFilter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

MADE_FOR = "5.23"  #: the release that the patches below are for: they are not part of its public interface
KEPT = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses", "/health"})
SEED = "seed_of_this_request"  #: attribute of a generation config that carries the seed to the decoding thread

Scope = MutableMapping[str, Any]
Pass = Callable[..., Awaitable[Any]]


def main() -> None:
    """Patch the server, and run it until it is told to stop."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-context", type=int, required=True, help="tokens, prompt and answer together")
    parser.add_argument("--drain-s", type=int, required=True, help="seconds that requests have to end after SIGTERM")
    own, theirs = parser.parse_known_args()

    import transformers
    import uvicorn

    if not transformers.__version__.startswith(f"{MADE_FOR}."):
        sys.exit(
            f"this environment has transformers {transformers.__version__}, but serve.py is made for {MADE_FOR}; "
            f"use engine.environment=managed, or install transformers=={MADE_FOR}.*"
        )
    from transformers.cli.serving import chat_completion, completion, response, server, utils
    from transformers.cli.transformers import app

    limit(utils, own.max_context)
    refuse_half_characters(utils.BaseHandler)
    obey(chat_completion.ChatCompletionHandler)
    obey(completion.CompletionHandler)
    obey_sampling(response.ResponseHandler)
    name_model(utils.BaseHandler, own.served_model_name)
    server.build_server = close(
        server.build_server, own.served_model_name, os.environ.get("TRANSFORMERS_SERVE_API_KEY")
    )
    uvicorn.Config = functools.partial(uvicorn.Config, timeout_graceful_shutdown=own.drain_s)
    sys.argv = ["transformers", "serve", *theirs]
    app()


# --------------------------------------------------------------------------------------------------- what is decoded


def limit(utils: Any, context: int) -> None:
    """Refuse prompts that do not fit, and shorten answers to the room left. Every way of decoding comes past here."""
    for manager in (utils.GenerateManager, utils.CBGenerateManager):
        for name in ("generate_streaming", "generate_non_streaming"):
            setattr(manager, name, _limited(getattr(manager, name), context))

    def init(self: Any, message: str) -> None:
        self.msg = json.dumps(message)[1:-1]  # the server puts it between quotes as it is

    utils._StreamError.__init__ = init


def _limited(generate: Callable[..., Any], context: int) -> Callable[..., Any]:
    @functools.wraps(generate)
    def limited(self: Any, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **kwargs: Any) -> Any:
        ids = inputs["input_ids"]
        tokens = len(ids) if isinstance(ids, list) else int(ids.shape[-1])
        if tokens == 0:
            raise HTTPException(400, "the prompt has no tokens")
        if tokens >= context:
            raise HTTPException(
                400,
                f"the prompt has {tokens} tokens, but the context is {context} tokens and must also hold the answer",
            )
        gen_config.max_new_tokens = min(gen_config.max_new_tokens or context, context - tokens)
        seed = vars(gen_config).pop(SEED, None)
        model = model if seed is None else Seeded(model, seed)
        return generate(self, model, processor, inputs, gen_config, *args, **kwargs)

    return limited


class Seeded:
    """A model that seeds its generator in the decoding thread, when its turn has come."""

    def __init__(self, model: Any, seed: int) -> None:
        self._model = model
        self._seed = seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **inputs: Any) -> Any:
        """Generate as the model does, after seeding."""
        import torch

        torch.manual_seed(self._seed)
        return self._model.generate(**inputs)


# ------------------------------------------------------------------------------------------------- what is asked for


def obey(handler: Any) -> None:
    """Make the server obey requests about sampling and stop strings."""
    obey_sampling(handler)
    handler._streaming = _stopping(handler._streaming)
    handler._non_streaming = _cut(handler._non_streaming)


def obey_sampling(handler: Any) -> None:
    """Make the server obey `temperature`, `top_k` and `seed` of each request."""
    fields = handler._valid_params_class
    fields.__mutable_keys__ = fields.__mutable_keys__ | {"top_k"}
    handler._build_generation_config = _checked(handler._build_generation_config)


def refuse_half_characters(handler: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    validate = handler._validate_request

    @functools.wraps(validate)
    def encodable(self: Any, body: dict[str, Any]) -> None:
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            raise HTTPException(400, "the request holds half a character") from exc
        validate(self, body)

    handler._validate_request = encodable


def _checked(build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def checked(self: Any, body: dict[str, Any], defaults: Any, use_cb: bool = False) -> Any:
        seed, temperature = _number(body, "seed", int), _number(body, "temperature", float)
        max_tokens, top_k = _number(body, "max_tokens", int), _number(body, "top_k", int)
        _number(body, "top_p", float)
        if max_tokens is not None and max_tokens < 1:
            raise HTTPException(400, f"max_tokens must be at least 1, not {max_tokens}")
        if temperature is not None and temperature < 0:
            raise HTTPException(400, f"temperature must not be negative, and is {temperature}")
        if use_cb and temperature:
            raise HTTPException(400, "continuous batching decodes greedily here; ask with temperature 0")
        body["stop"] = _stops(body.get("stop")) or None
        body["seed"] = None  # the server would seed all that is being decoded
        config = build(self, body, defaults, use_cb=use_cb)
        if temperature is not None or use_cb:
            config.do_sample = bool(temperature)
        if top_k is not None:
            config.top_k = max(top_k, 0)
        if seed is not None and config.do_sample:
            setattr(config, SEED, seed)
        return config

    return checked


def _number(body: dict[str, Any], key: str, kind: type) -> Any:
    value = body.get(key)
    if value is None or (isinstance(value, (int, kind)) and not isinstance(value, bool)):
        return value
    raise HTTPException(400, f"{key} must be a number{' without a fraction' if kind is int else ''}, not {value!r}")


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise HTTPException(400, f"stop must be a text or a list of texts, none of them empty, not {value!r}")
    return stops


def _stopping(streaming: Callable[..., Any]) -> Callable[..., Any]:
    """Let the queue that a stream is fed from end before a stop string."""

    @functools.wraps(streaming)
    def stopping(
        self: Any, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any, config: Any,
        gen_manager: Any, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if config.stop_strings:
            gen_manager = StoppingManager(gen_manager, config.stop_strings)
        return streaming(self, request_id, model, processor, model_id, inputs, config, gen_manager, *args, **kwargs)

    return stopping


class StoppingManager:
    """A generation manager whose streams end before a stop string."""

    def __init__(self, manager: Any, stops: Sequence[str]) -> None:
        self._manager = manager
        self._stops = stops

    def generate_streaming(self, *args: Any, **kwargs: Any) -> tuple[StoppingQueue, Any]:
        """Return a `StoppingQueue` in place of the manager's queue, and its streamer."""
        queue, streamer = self._manager.generate_streaming(*args, **kwargs)
        return StoppingQueue(queue, self._stops, streamer.cancel), streamer


class StoppingQueue:
    """The pieces of a text up to a stop string; then None, which is the end."""

    def __init__(self, queue: asyncio.Queue[Any], stops: Sequence[str], cancel: Callable[[], None]) -> None:
        self._queue = queue
        self._filter = StopFilter(stops)
        self._cancel = cancel
        self._ready: deque[Any] = deque()

    async def get(self) -> Any:
        """Return the next piece, when there is one."""
        while not self._ready:
            self._take(await self._queue.get())
        return self._ready.popleft()

    def get_nowait(self) -> Any:
        """Return the next piece. Raises `asyncio.QueueEmpty` if there is none yet."""
        while not self._ready:
            self._take(self._queue.get_nowait())
        return self._ready.popleft()

    def _take(self, item: Any) -> None:
        if type(item) is not str:  # the end, an error, or what is no part of the answer's text
            self._ready.extend([held] if (held := self._filter.flush()) else [])
            self._ready.append(item)
            return
        text, found = self._filter.push(item)
        self._ready.extend([text] if text else [])
        if found:
            self._ready.append(None)
            self._cancel()


def _cut(non_streaming: Pass) -> Pass:
    """End a whole answer before a stop string."""

    @functools.wraps(non_streaming)
    async def cut(
        self: Any, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any, config: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        response = await non_streaming(self, request_id, model, processor, model_id, inputs, config, *args, **kwargs)
        if not config.stop_strings:
            return response
        answer = json.loads(response.body)
        for choice in answer["choices"]:
            part, key = (choice["message"], "content") if "message" in choice else (choice, "text")
            text, found = StopFilter(config.stop_strings).push(part.get(key) or "")
            if found:
                part[key], choice["finish_reason"] = text, "stop"
        return JSONResponse(answer)

    return cut


def name_model(handler: Any, name: str) -> None:
    """Serve the model that was loaded under `name`, and no other."""
    resolve = handler._resolve_model

    @functools.wraps(resolve)
    def named(self: Any, body: dict[str, Any]) -> tuple[str, Any, Any]:
        if body.get("model") not in (None, name):
            raise HTTPException(404, f"the model {body['model']!r} does not exist; this server has {name!r}")
        _, model, processor = resolve(self, {})
        return name, model, processor

    handler._resolve_model = named


# ------------------------------------------------------------------------------------------------------ who may ask


def close(build_server: Callable[..., Any], name: str, key: str | None) -> Callable[..., Any]:
    """Return a builder of the server's application with fewer paths, with `key`, and with words for every failure."""

    @functools.wraps(build_server)
    def closed(*args: Any, **kwargs: Any) -> Any:
        from fastapi.exceptions import RequestValidationError
        from jinja2 import TemplateError

        app = build_server(*args, **kwargs)
        app.router.routes[:] = [route for route in app.router.routes if route.path in KEPT]
        models = {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "transformers"}]}
        app.add_route("/v1/models", lambda _: JSONResponse(models), methods=["GET"])
        app.add_exception_handler(HTTPException, _refused)
        app.add_exception_handler(RequestValidationError, _unreadable)
        for wrong in (TemplateError, ValueError):  # such as roles in an order that the template does not know
            app.add_exception_handler(wrong, functools.partial(_failed, 400))
        app.add_exception_handler(Exception, functools.partial(_failed, 500))
        if key:
            app.add_middleware(KeyDemanded, key=key)
        return app

    return closed


class KeyDemanded:
    """ASGI middleware that answers 401 to requests without the key; /health needs none."""

    def __init__(self, app: Pass, key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Pass, send: Pass) -> None:
        """Pass the request on if it has the key."""
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                await _error(401, "a valid key is needed: Authorization: Bearer …")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status)


async def _refused(_: Request, exc: Any) -> JSONResponse:
    return _error(exc.status_code, str(exc.detail))


async def _unreadable(_: Request, exc: Any) -> JSONResponse:
    return _error(400, "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in exc.errors()))


async def _failed(status: int, _: Request, exc: Exception) -> JSONResponse:
    return _error(status, f"{type(exc).__name__}: {exc}")


if __name__ == "__main__":
    main()
