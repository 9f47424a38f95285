"""Failures in OpenAI's envelope, with `source`: whether the gateway or an engine says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

#: bytes of an error up to which it is read as JSON
_MOST_WORDS = 1 << 16

GATEWAY, ENGINE = "gateway", "engine"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}


@dataclass(frozen=True, slots=True)
class Failure(Exception):
    """A failure that a client is told with an HTTP status. `code` is a word for programs; None where there is none."""

    status: int
    message: str
    code: str | None = None
    source: str = GATEWAY
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the failure as the body of a whole answer."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error"),
            "param": None,
            "code": self.code,
            "source": self.source,
        }
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """Return the failure as an event of a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


BUG = Failure(500, "the gateway has a bug; its log says more")


def of_engine(status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
    """Return a server's refusal as a failure, in the server's own words."""
    from engines.json_http import words

    code: str | None = None
    try:
        answer = orjson.loads(body) if len(body) <= _MOST_WORDS else None  # it refuses what is nested too deep
    except ValueError:
        answer = None
    if isinstance(answer, Mapping):
        error = answer.get("error")
        if isinstance(error, Mapping) and isinstance(error.get("code"), str):
            code = error["code"]
        message = words(answer)
    else:
        message = body[:2000].decode(errors="replace").strip() or "it said no more"
    if not 400 <= status < 600:
        return Failure(502, f"it answered {status}: {message}", code, ENGINE, headers)
    return Failure(status, message, code, ENGINE, headers)
