"""The loading of any Hugging Face folder, whatever the model is for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DTYPES = ("auto", "bfloat16", "float16", "float32")

#: options of every `from_pretrained`: the model was fetched before, and brings no code of its own
RULES: Mapping[str, bool] = {"local_files_only": True, "trust_remote_code": False}


def check(path: str, device: str, dtype: str) -> None:
    """Raise `ValueError` if loading cannot work, in clearer words than transformers has."""
    import torch

    if not Path(path).is_dir():
        raise ValueError(f"model_path is not a folder: {path!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch {torch.__version__} sees no GPU")


def context_of(limit: int | None, wanted: int) -> int:
    """Return the context length to serve: `wanted`, or the model's `limit` if that is 0. Raises `ValueError`."""
    if limit is None:
        if not wanted:
            raise ValueError("the model's config has no max_position_embeddings; set max_context")
        return wanted
    if wanted > limit:
        raise ValueError(f"max_context is {wanted}, but the model's limit is {limit}")
    return wanted or limit


def threads_per_worker(workers: int) -> int:
    """Return the threads of each worker: two workers of two threads each on two cores are slower than one.

    Measured with SmolLM2-135M, float32: 31 tokens/s together with one thread each, 18 with two.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return max(1, len(os.sched_getaffinity(0)) // workers)
