"""A client for our handlers in TorchServe: OpenAI's API for text and embeddings, .npz files for tensors."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engines.base import Answer, InferenceError, Request, Target, TensorRequest, Tensors
from engines.json_http import JsonHttp
from engines.openai_http import OpenAIClient

if TYPE_CHECKING:
    import numpy

    Arrays = Mapping[str, numpy.ndarray[Any, Any]]

_NPZ = "application/x-npz"
_TOO_LARGE = 413  #: TorchServe sends this status without a word


class TorchServeClient:
    """A client that keeps connections open between requests; safe to use from several threads."""

    def __init__(self) -> None:
        self._openai = OpenAIClient()
        self._http = JsonHttp()

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Do what `Engine.infer` does."""
        if isinstance(request, TensorRequest):
            return self._tensors(target, request)
        return self._openai.infer(target, request)

    def close(self) -> None:
        """Close the kept connections."""
        self._openai.close()
        self._http.close()

    def _tensors(self, target: Target, request: TensorRequest) -> Iterator[Tensors]:
        body = _packed(request.inputs)
        try:
            answer = self._http.post_bytes(target, "", body, _NPZ)
        except InferenceError as exc:
            if exc.status != _TOO_LARGE:
                raise
            raise InferenceError(f"the server takes no request of {len(body)} bytes", exc.status) from exc
        yield Tensors(_unpacked(answer))


def _packed(arrays: Arrays) -> bytes:
    """Return the bytes that numpy.savez would write; that takes names as keywords, and has some of its own."""
    import numpy

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                numpy.lib.format.write_array(entry, numpy.asanyarray(array), allow_pickle=False)
    return file.getvalue()


def _unpacked(content: bytes) -> Arrays:
    import numpy

    try:
        with numpy.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise InferenceError(f"the server answered 200, but no .npz file of arrays: {exc}") from exc
