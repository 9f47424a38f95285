"""JSON over HTTP with kept connections, and server-sent events; what the engines' HTTP clients share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.base import InferenceError, Target

if TYPE_CHECKING:
    import requests

_CONNECT_TIMEOUT_S = 5.0


class JsonHttp:
    """Safe to use from several threads. Raises `InferenceError` with the server's own words, where it has any."""

    def __init__(self) -> None:
        self._session: requests.Session | None = None

    def post(self, target: Target, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that the server answers."""
        with self._open(target, path, body, stream=False) as response:
            answer = _object(response.content)
        if "error" in answer:
            raise InferenceError(_words(answer), response.status_code)
        return answer

    def events(self, target: Target, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON object of each server-sent event, as it arrives; closing the iterator closes the connection."""
        import requests

        with self._open(target, path, body, stream=True) as response:
            came = False
            try:
                for line in response.iter_lines(chunk_size=None):
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                        event = _object(data)
                        if "error" in event:
                            raise InferenceError(_words(event))
                        came = True
                        yield event
            except requests.RequestException as exc:
                raise InferenceError(f"the stream broke off: {exc}") from exc
            if not came:
                raise InferenceError(f"the server answered {path} without a single event")

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self, target: Target, path: str, body: Mapping[str, Any], stream: bool) -> requests.Response:
        import requests

        session = self._session  # `close` may come from another thread
        if session is None:
            session = self._session = requests.Session()
            session.trust_env = False  # a proxy has no place between us and a server that we started
        headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
        if stream:  # llama.cpp's server promises to keep the connection of a stream, and closes it
            headers["Connection"] = "close"
        url = f"{target.endpoints.http.url}{path}"
        timeouts = (_CONNECT_TIMEOUT_S, target.timeout_s)
        send = partial(session.post, url, json=body, headers=headers, stream=stream, timeout=timeouts)
        try:
            try:
                response = send()
            except requests.ConnectionError as exc:
                if not _was_dropped(exc):
                    raise
                response = send()
        except requests.RequestException as exc:
            raise InferenceError(f"no answer from {url}: {exc}") from exc
        if response.status_code != 200:
            raise InferenceError(_words(_object(_rest(response))), response.status_code)
        return response


def _was_dropped(error: BaseException) -> bool:
    """Whether a kept connection was closed by the server as we sent: llama.cpp's closes them after 5 idle seconds, and
    after 100 requests. It has then read nothing, so sending again does nothing twice."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionResetError, BrokenPipeError)):  # RemoteDisconnected is the former
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _rest(response: requests.Response) -> bytes:
    """The body of a refusal, as much of it as comes."""
    import requests

    with response:
        try:
            return response.content
        except requests.RequestException:
            return b""


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        return {"error": content.decode(errors="replace").strip() or "an empty answer"}
    return answer if isinstance(answer, dict) else {"error": str(answer)}


def _words(answer: Mapping[str, Any]) -> str:
    """What the server says is wrong: `{"error": {"message": …}}` (OpenAI) or `{"error": …}` (Triton)."""
    error = answer.get("error", answer)
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
