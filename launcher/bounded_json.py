"""Read JSON that another version of us, or anybody, may have written: records on disk, messages from a socket."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from engines.files import opened

LIMIT_BYTES = 1 << 24


def read(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`. Raises `OSError` if it cannot be read, `ValueError` if it is something else."""
    return parse(read_bytes(file))


def read_bytes(file: Path) -> bytes:
    """Return the bytes of `file`. Raises `OSError` if it cannot be read, `ValueError` for no file or one too large."""
    try:
        stream = opened(os.fspath(file))
    except OSError as exc:
        if exc.errno in (None, errno.ELOOP, errno.ENXIO):
            raise ValueError("it is no file") from exc
        raise
    with stream:
        return _bounded(stream.read(LIMIT_BYTES + 1))


def parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises `ValueError` if it is something else."""
    try:
        data = json.loads(_bounded(text))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def _bounded(text: bytes) -> bytes:
    if len(text) > LIMIT_BYTES:
        raise ValueError(f"it has more than {LIMIT_BYTES >> 20} MiB")
    return text
