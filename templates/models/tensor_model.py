"""The contract of a model of plain arrays: its inputs, its outputs, and refused requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bad_request import BadRequestError

if TYPE_CHECKING:
    import numpy

    Arrays = Mapping[str, "numpy.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; `dtype` is numpy's name, and -1 in `shape` is any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('any' if size < 0 else str(size) for size in self.shape)}]"

    def mismatch(self, array: numpy.ndarray[Any, Any]) -> str:
        """Return the reason why `array` does not fit; empty if it does."""
        if array.dtype.name != self.dtype:
            return f"is {array.dtype.name}"
        sizes = zip(array.shape, self.shape, strict=False)
        if array.ndim != len(self.shape) or any(want not in (-1, have) for have, want in sizes):
            return f"has shape {list(array.shape)}"
        return ""


Signature = Sequence[Tensor]


class TensorModel(ABC):
    """A loaded model; `inputs` and `outputs` are in the order of the model's own arguments."""

    def __init__(self, inputs: Signature, outputs: Signature) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def run(self, arrays: Arrays) -> Arrays:
        """Compute every output.

        Raises `BadRequestError` if `arrays` are not the model's inputs, `ValueError` if the outputs are not as
        declared, and the model's own errors.
        """
        self._check(arrays)
        answers = dict(zip([output.name for output in self.outputs], self._compute(arrays), strict=True))
        for output in self.outputs:
            if wrong := output.mismatch(answers[output.name]):
                raise ValueError(f"output {output.name!r} {wrong}, but {output} is declared")
        return answers

    def warm_up(self) -> None:
        """Compute zeros, so that a model which is not as declared fails at load, not in a request."""
        import numpy

        zeros = {tensor.name: numpy.zeros([abs(size) for size in tensor.shape], tensor.dtype) for tensor in self.inputs}
        try:
            self.run(zeros)
        except Exception as exc:
            takes = ", ".join(map(str, self.inputs))
            raise ValueError(f"cannot compute zeros, with 1 for any size ({takes}): {exc}") from exc

    def close(self) -> None:
        """Free the model's memory outside of Python. A second call does nothing."""

    @abstractmethod
    def _compute(self, arrays: Arrays) -> Sequence[numpy.ndarray[Any, Any]]:
        """Return an array for each output, in their order."""

    def _check(self, arrays: Arrays) -> None:
        takes = f"the model takes {{{', '.join(map(str, self.inputs))}}}"
        names = [tensor.name for tensor in self.inputs]
        if unknown := [name for name in arrays if name not in names]:
            raise BadRequestError(f"unknown input {unknown[0]!r}; {takes}")
        for tensor in self.inputs:
            if tensor.name not in arrays:
                raise BadRequestError(f"input {tensor.name!r} is missing; {takes}")
            if wrong := tensor.mismatch(arrays[tensor.name]):
                raise BadRequestError(f"input {tensor.name!r} {wrong}; {takes}")

    def _as_declared(self, answer: Any) -> list[Any]:
        """Return a model's result (one tensor, several, or a dict of them) as a list in the order of the outputs."""
        names = [output.name for output in self.outputs]
        if isinstance(answer, dict):
            if missing := [name for name in names if name not in answer]:
                raise ValueError(f"the model returns {', '.join(map(str, answer))}, but {missing[0]!r} is declared")
            return [answer[name] for name in names]
        values = list(answer) if isinstance(answer, (tuple, list)) else [answer]
        if len(values) != len(names):
            raise ValueError(
                f"the model returns {len(values)} tensors, but {len(names)} are declared: {', '.join(names)}"
            )
        return values

    def _same_names(self, what: str, found: Sequence[Any]) -> None:
        """Refuse a file whose inputs or outputs (`what`; each of `found` has a `name`) are not those declared."""
        declared = [tensor.name for tensor in (self.inputs if what == "input" else self.outputs)]
        there = [value.name for value in found]
        if missing := [name for name in declared if name not in there]:
            raise ValueError(f"the file has no {what} {missing[0]!r}, which is declared; it has {', '.join(there)}")
        if what == "input" and (extra := [name for name in there if name not in declared]):
            raise ValueError(
                f"the file has an input {extra[0]!r}, which is not declared; declared: {', '.join(declared)}"
            )
