"""Where a server is reached, and with which key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engines.errors import InferenceError

LOOPBACK_ADDRESS = "127.0.0.1"
LOOPBACK = frozenset({LOOPBACK_ADDRESS, "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to; `host` is never a wildcard."""

    host: str
    port: int
    scheme: str = "http"
    path: str = ""  #: in front of every path of the server's API: "/v1/proxy"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self}{self.path}"


@dataclass(frozen=True, slots=True)
class Endpoints:
    http: Endpoint
    grpc: Endpoint | None = None
    metrics: str | None = None  #: the URL of a page in Prometheus' text format


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Where a server that makes its own keys writes them: a JSON file, and the dotted path of one key in it."""

    path: str
    key: str

    def read(self) -> str:
        """The key as it is now: a server that is started again makes another. Raises `InferenceError`."""
        try:
            value = json.loads(Path(self.path).read_text())
            for part in self.key.split("."):
                value = value[part]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise InferenceError(f"the server has written no key {self.key!r} to {self.path}: {exc}") from exc
        return str(value)
