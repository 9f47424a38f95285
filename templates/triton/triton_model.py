"""The common part of our models in Triton's Python backend: parameters, a watch on the server, errors.

The launcher renders this file beside model.py, which imports it.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Mapping

import triton_python_backend_utils as pb_utils
from bad_request import BadRequestError

SERVER_POLL_S = 0.5
ORPHAN_GRACE_S = 3.0  # for the stub's own end, which also removes its shared memory


class RequestCancelledError(Exception):
    """The client went away or withdrew the request."""


def parameters(args: Mapping[str, str]) -> Mapping[str, str]:
    """Return the `parameters` of config.pbtxt, from the arguments of `initialize`."""
    given = json.loads(args["model_config"])["parameters"]
    return {name: value["string_value"] for name, value in given.items()}


def whole_number(given: Mapping[str, str], name: str, *, default: int, low: int) -> int:
    """Return the parameter `name` as a whole number. Raises `ValueError` below `low`."""
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) < low:
        raise ValueError(f"{name} must be a whole number from {low}, not {text!r}")
    return int(text)


def end_with_server() -> None:
    """End this process when the server is dead: an orphan would hold the model's memory.

    The stub notices that tritonserver is dead, but then waits for every thread, and one that is
    inside a call to the server never returns (Triton 2.51).
    """
    threading.Thread(target=_wait_for_the_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_end(server: int) -> None:
    while os.getppid() == server:
        time.sleep(SERVER_POLL_S)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


def error_of(exc: Exception) -> tuple[str, int]:
    """Return the message for the client and Triton's code; errors of the server's own go to the log in full."""
    error = pb_utils.TritonError
    if isinstance(exc, BadRequestError):
        return str(exc), error.INVALID_ARG
    if isinstance(exc, RequestCancelledError):
        return "the request was cancelled", error.CANCELLED
    pb_utils.Logger.log_error("".join(traceback.format_exception(exc)))
    return f"{type(exc).__name__}: {exc}", error.INTERNAL


def text_of(name: str, value: bytes) -> str:
    """Decode a text of the input `name`. Raises `BadRequestError` if it is not UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequestError(f"{name} is not UTF-8: {exc}") from exc
