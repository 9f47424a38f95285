"""Writes the TorchScript models of tests/tensor_models.py to the folder given; run by a Python that has torch."""

from __future__ import annotations

import sys
from typing import Dict, Tuple  # noqa: UP035  # TorchScript knows these, and not the built-in ones

import torch
from torch import Tensor


class AsTuple(torch.nn.Module):  # type: ignore[misc]
    def forward(self, a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        return a + b, 2 * b.to(torch.int64)


class AsDict(torch.nn.Module):  # type: ignore[misc]
    def forward(self, a: Tensor, b: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        return {"DOUBLE": 2 * b.to(torch.int64), "SUM": a + b}


class Half(torch.nn.Module):  # type: ignore[misc]
    """A dtype that numpy does not have."""

    def forward(self, a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        return (a + b).to(torch.bfloat16), 2 * b.to(torch.int64)


if __name__ == "__main__":
    for name, kind in (("as_tuple", AsTuple), ("as_dict", AsDict), ("half", Half)):
        torch.jit.save(torch.jit.script(kind()), f"{sys.argv[1]}/{name}.pt")
