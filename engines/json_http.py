"""HTTP with kept connections for the engines' clients: JSON, server-sent events, JSON lines, plain bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.base import LOOPBACK, InferenceError, Target

if TYPE_CHECKING:
    import requests

_CONNECT_TIMEOUT_S = 5.0
_WORDS_LIMIT = 2000  #: characters of a server's complaint; some repeat the whole request in it


class JsonHttp:
    """An HTTP client that keeps connections; safe to use from several threads.

    Every call raises `InferenceError` with the server's own words, if it has any. With `proxies`, servers that are not
    on loopback are reached through the proxy that the environment names.
    """

    def __init__(self, *, proxies: bool = False) -> None:
        self._proxies = proxies
        self._session: requests.Session | None = None

    def post(self, target: Target, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that the server answers."""
        with self._open(target, path, json=body) as response:
            answer = _object(response.content)
        if answer.get("error"):
            raise InferenceError(words(answer), response.status_code)
        return answer

    def post_bytes(self, target: Target, path: str, content: bytes, content_type: str) -> bytes:
        """Return the body that the server answers, as it is."""
        with self._open(target, path, data=content, headers={"Content-Type": content_type}) as response:
            return response.content

    def events(self, target: Target, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield each server-sent event's JSON object as it arrives; closing the iterator closes the connection."""
        return self._stream(target, path, body, b"data:")

    def lines(self, target: Target, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield each line's JSON object as it arrives; closing the iterator closes the connection."""
        return self._stream(target, path, body, b"")

    def close(self) -> None:
        """Close the kept connections. The next request opens new ones."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _stream(self, target: Target, path: str, body: Mapping[str, Any], mark: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects on the lines that begin with `mark`."""
        import requests

        # llama.cpp's server promises to keep the connection of a stream, and closes it.
        with self._open(target, path, json=body, stream=True, headers={"Connection": "close"}) as response:
            came = False
            try:
                for line in response.iter_lines(chunk_size=None):
                    if not line.startswith(mark) or (data := line[len(mark) :].strip()) in (b"", b"[DONE]"):
                        continue
                    event = _object(data)
                    if event.get("error"):
                        raise InferenceError(words(event))
                    came = True
                    yield event
            except requests.RequestException as exc:
                raise InferenceError(f"the stream broke off: {exc}") from exc
            if not came:
                raise InferenceError(f"the server answered {path} without a single event")

    def _open(self, target: Target, path: str, **request: Any) -> requests.Response:
        """Return the response to a POST; its body is already here unless `stream` is in `request`."""
        import requests

        endpoint = target.endpoints.http
        session = self._session  # `close` may come from another thread
        if session is None:
            session = self._session = requests.Session()
            # A proxy has no place between us and a server that we started.
            session.trust_env = self._proxies and endpoint.host not in LOOPBACK
            import ssl  # a launch loads OpenSSL only where it is needed

            session.verify = ssl.get_default_verify_paths().cafile or True  # heeds SSL_CERT_FILE, as the probes do
        url = f"{endpoint.url}{path}"
        send = partial(
            session.post,
            url,
            auth=_Bearer(target.bearer()),
            timeout=(_CONNECT_TIMEOUT_S, target.timeout_s),
            allow_redirects=False,  # a redirect would repeat a POST as a GET, and take the key elsewhere
            **request,
        )
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
            raise InferenceError(_refusal(response), response.status_code)
        return response


class _Bearer:
    """The key as a header. Without one of these, `requests` would send a password out of ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _was_dropped(error: BaseException) -> bool:
    """Return whether the server closed a kept connection as we sent.

    llama.cpp's server closes them after 5 idle seconds, and after 100 requests. It has then read nothing, so sending
    again does nothing twice.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionResetError, BrokenPipeError)):  # RemoteDisconnected is the former
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _refusal(response: requests.Response) -> str:
    """Return the server's words with a status other than 200, as many as come."""
    import requests

    with response:
        if 300 <= response.status_code < 400 and (place := response.headers.get("Location")):
            return f"the server answers {response.status_code} and points to {place}"
        try:
            return words(_object(response.content))
        except requests.RequestException:
            return f"the server answered {response.status_code} and broke off"


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        return {"error": content.decode(errors="replace").strip() or "an empty answer"}
    return answer if isinstance(answer, dict) else {"error": str(answer)}


def words(answer: Mapping[str, Any]) -> str:
    """Return the server's own words for what is wrong.

    They are in `{"error": {"message": …}}` (OpenAI), `{"error": …}` (Triton), `{"message": …}` (TorchServe), or
    FastAPI's `{"detail": …}`.
    """
    error = next((answer[key] for key in ("error", "detail") if answer.get(key)), answer)
    if isinstance(error, Mapping):
        error = error.get("message", error)
    if isinstance(error, list) and all(isinstance(item, Mapping) and "msg" in item for item in error):
        # Without its `input`, which repeats what was sent.
        error = "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item['msg']}" for item in error)
    return str(error)[:_WORDS_LIMIT]
