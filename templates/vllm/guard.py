"""Demand the deployment's key on every path of vLLM's server but /health.

vLLM's own check covers /v1 and a few others; /invocations, which generates text too, and /metrics are open beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]

_REFUSAL = b'{"error": {"message": "the key is missing or wrong", "type": "Unauthorized", "code": 401}}'


class RequireKey:
    """ASGI middleware, given to vLLM as `--middleware guard.RequireKey`; the key is in VLLM_API_KEY."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = _digest(os.environ["VLLM_API_KEY"].encode())

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Pass the request on if it has the key; else answer 401, or close the WebSocket with 1008."""
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _may_pass(self, scope: Mapping[str, Any]) -> bool:
        # A browser asks with OPTIONS, and without the key, whether it may ask at all.
        if scope["path"] == "/health" or scope.get("method") == "OPTIONS":
            return True
        said = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
        scheme, _, token = said.partition(b" ")
        # Digests are of one length, so that the time it takes tells nothing about the key's.
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(token), self._key)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
