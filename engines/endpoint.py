"""The addresses of a server, and the key that it wants."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from engines.errors import InferenceError
from engines.files import read_written

LOOPBACK_ADDRESS = "127.0.0.1"
_KEY_FILE_BYTES = 1 << 16
_KEY = re.compile(r"[!-~]{1,4096}")

LOOPBACK = frozenset({LOOPBACK_ADDRESS, "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to; `host` is never a wildcard."""

    host: str
    port: int
    scheme: str = "http"
    path: str = ""  #: a prefix of every path of the server's API: "/v1/proxy"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as a URL, without a slash at its end."""
        return f"{self.scheme}://{self}{self.path}"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The addresses of one server; None for a protocol that it does not have."""

    http: Endpoint
    grpc: Endpoint | None = None
    metrics: str | None = None  #: the URL of a page in Prometheus' text format


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The JSON file into which a server that makes its own keys writes them, and the dotted path of one key in it."""

    path: str
    key: str

    def read(self) -> str:
        """Return the key as it is now: a restarted server makes another. Raises `InferenceError` if there is none."""
        try:
            value = json.loads(read_written(self.path, _KEY_FILE_BYTES))
            for part in self.key.split("."):
                value = value[part]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InferenceError(f"the server has written no key {self.key!r} to {self.path}: {exc}") from exc
        if not isinstance(value, str) or not _KEY.fullmatch(value):  # the key goes into a header
            raise InferenceError(f"the server has written no key {self.key!r} to {self.path}, but something else")
        return value
