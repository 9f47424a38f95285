"""A TorchServe handler: arrays in, arrays out, as .npz files; or as JSON, for people with curl.

The launcher packs this file into the model's archive, with the modules that it imports; `handler` in model-config.yaml
names the model to load, with its inputs and outputs.

    application/x-npz   numpy.savez(file, x=…)            → numpy.savez(file, total=…)
    application/json    {"inputs": {"x": [[1, 2]]}}       → {"outputs": {"total": [3]}}
                        {"inputs": "zeros"}               → {"shapes": {"total": [1]}}, for sizes of 1 where any will do
"""

from __future__ import annotations

import io
import json
import reprlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from bad_request import BadRequestError
from decoding import parse_json
from hugging_face import threads_per_worker
from tensor_model import Tensor
from tensors import load
from torchserve_worker import JSON, NotThereError, Request, answer_each, end_at_once, loading

NPZ = "application/x-npz"

Arrays = Mapping[str, "numpy.ndarray[Any, Any]"]


class TensorHandler:
    """The class that TorchServe loads, the only one of this file. Each worker has its own copy of the model."""

    def initialize(self, context: Any) -> None:
        """Load the model and warm it up; TorchServe calls this once per worker."""
        end_at_once()
        with loading():
            given = context.model_yaml_config["handler"]
            self._model = load(
                str(Path(context.system_properties["model_dir"], given["model_path"])),
                given["model_format"],
                given["device"],
                inputs=[Tensor(item["name"], item["dtype"], tuple(item["shape"])) for item in given["inputs"]],
                outputs=[Tensor(item["name"], item["dtype"], tuple(item["shape"])) for item in given["outputs"]],
                threads=threads_per_worker(int(given["workers"])),
                library=given.get("library"),
            )
            self._model.warm_up()

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Return the bytes of each answer; `data` are the requests of one batch."""
        return answer_each(data, context, self._answer)

    def _answer(self, request: Request) -> tuple[str, bytes]:
        if request.path:
            raise NotThereError(f"there is no /{request.path} here; send arrays to the model itself")
        if request.content_type == NPZ:
            return NPZ, _npz(self._model.run(_arrays(request.body)))
        if request.content_type != JSON:
            raise BadRequestError(f"Content-Type {request.content_type!r} is not known; known: {NPZ}, {JSON}")
        inputs = _inputs(request.body)
        if inputs == "zeros":
            answers = self._model.run({item.name: _zeros(item) for item in self._model.inputs})
            return JSON, _json({"shapes": {name: list(array.shape) for name, array in answers.items()}})
        answers = self._model.run({name: self._array(name, value) for name, value in inputs.items()})
        return JSON, _json({"outputs": {name: array.tolist() for name, array in answers.items()}})

    def _array(self, name: str, value: object) -> numpy.ndarray[Any, Any]:
        """Return `value` as an array of the model's dtype, since JSON has none. Raises `BadRequestError`."""
        dtypes = {item.name: item.dtype for item in self._model.inputs}
        try:
            return numpy.asarray(value, dtypes.get(name))
        except (ValueError, TypeError, OverflowError) as exc:
            raise BadRequestError(f"input {name!r} is no array of {dtypes.get(name)}: {exc}") from exc


def _arrays(body: bytes) -> Arrays:
    file = io.BytesIO(body)
    if not zipfile.is_zipfile(file):  # numpy would offer to unpickle it
        raise BadRequestError(f"the body is no .npz file: {reprlib.repr(body)}")
    try:
        with numpy.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as exc:  # zipfile, zlib and numpy have each their own for a broken one
        raise BadRequestError(f"the body is no .npz file of arrays: {exc}") from exc


def _npz(arrays: Arrays) -> bytes:
    """Return a file as numpy.savez writes it; numpy.savez itself takes names as keywords, and has some of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                numpy.lib.format.write_array(entry, numpy.asanyarray(array), allow_pickle=False)
    return file.getvalue()


def _inputs(body: bytes) -> Any:
    given = parse_json("the body", body.decode("utf-8", errors="replace"))
    inputs = given.get("inputs") if isinstance(given, dict) else None
    if not isinstance(inputs, dict) and inputs != "zeros":
        raise BadRequestError(f'the body must be {{"inputs": {{name: numbers, …}}}}, not {reprlib.repr(given)}')
    return inputs


def _zeros(item: Tensor) -> numpy.ndarray[Any, Any]:
    return numpy.zeros([max(size, 1) for size in item.shape], item.dtype)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
