"""Turn a GGUF file into a Hugging Face folder: bf16 safetensors, tokenizer, chat template.

    python gguf_to_safetensors.py SOURCE.gguf OUTPUT_DIR

Runs inside an environment that has torch, transformers, gguf and accelerate. Progress goes to stderr; an error is one
line there and exit code 1, and OUTPUT_DIR is then not to be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF_MAGIC = b"GGUF"


class ConversionError(Exception):
    """The conversion cannot be done; the message is one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file; return the exit code."""
    parser = argparse.ArgumentParser(description="Convert a GGUF file to a Hugging Face folder.")
    parser.add_argument("source", type=Path, help="the .gguf file")
    parser.add_argument("output", type=Path, help="the folder to fill; it must be empty or not exist")
    options = parser.parse_args(argv)
    try:
        check(options.source, options.output)
        convert(options.source, options.output)
    except ConversionError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


def check(source: Path, output: Path) -> None:
    """Refuse wrong paths before torch is imported, which takes seconds. Raises `ConversionError`."""
    try:
        with source.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as exc:
        raise ConversionError(f"cannot read {str(source)!r}: {exc.strerror}") from exc
    if magic != GGUF_MAGIC:
        raise ConversionError(f"{str(source)!r} is not a GGUF file: it begins with {magic!r}")
    if output.exists() and any(output.iterdir()):
        raise ConversionError(f"output {str(output)!r} is not empty; remove it or name another")


def convert(source: Path, output: Path) -> None:
    """Convert `source` into the folder `output`. Raises `ConversionError`."""
    started = time.monotonic()
    try:
        progress(started, f"reading {source}")
        tokenizer, model = load(source)
        progress(started, f"writing {model.num_parameters():,} parameters to {output}")
        save(tokenizer, model, output)
    except Exception as exc:
        reason = " ".join(str(exc).split()) or "no reason given"
        raise ConversionError(f"cannot convert {str(source)!r}: {type(exc).__name__}: {reason}") from exc
    progress(started, "done")


def load(source: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return the tokenizer and the model of a GGUF file, its weights dequantized."""
    # tqdm reads this when it is imported; its bar is one endless line in a log file.
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    folder, name = str(source.resolve().parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, local_files_only=True, dtype=torch.bfloat16)
    return tokenizer, model


def save(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path) -> None:
    """Write the Hugging Face folder; every file can be read by everybody."""
    # The weights are plain tensors by now, but transformers still remembers that they came from a
    # quantised file, and save_pretrained() then refuses ("not serializable"; 5.23).
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors 0.8 writes 0600, and servers run under other users


def progress(started: float, text: str) -> None:
    """Print `text` to stderr with the seconds since `started`, a reading of time.monotonic()."""
    print(f"[{time.monotonic() - started:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
