"""Check the arrays of a request against a model's signature: wrong names, shapes and types never reach an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engines.base import InferenceError, TensorSpec

if TYPE_CHECKING:
    import numpy


def checked(inputs: Mapping[str, Any], expected: Sequence[TensorSpec]) -> dict[str, numpy.ndarray[Any, Any]]:
    """Return `inputs` as arrays, in the model's order. Raises `InferenceError` that shows the whole signature."""
    import numpy

    signature = f"the model takes {{{', '.join(map(str, expected))}}}"
    names = [spec.name for spec in expected]
    if missing := [name for name in names if name not in inputs]:
        raise InferenceError(f"input {missing[0]!r} is missing; {signature}")
    if unknown := [name for name in inputs if name not in names]:
        raise InferenceError(f"unknown input {unknown[0]!r}; {signature}")
    arrays = {}
    for spec in expected:
        array = numpy.asarray(inputs[spec.name])
        if array.dtype != numpy.dtype(spec.dtype):
            raise InferenceError(f"input {spec.name!r} is {array.dtype}; {signature}")
        if not _fits(array.shape, spec.shape):
            raise InferenceError(f"input {spec.name!r} has shape {list(array.shape)}; {signature}")
        arrays[spec.name] = array
    return arrays


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))
