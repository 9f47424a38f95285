"""Conversions between model formats: which steps lead from a source to what an engine reads, and doing them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import FILES, OUTPUT, BuildStep, Environment, PrepareError
from engines.rbln_sdk import chip
from launcher import commands
from launcher.atomic import made_once
from launcher.environments import ensure
from launcher.progress import Progress


def artifacts(cache: Path) -> Path:
    """The folder of everything that build steps make."""
    return cache / "artifacts"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the steps are made from."""

    cache: Path
    templates: Path
    model_id: str
    identity: str  #: of the weights
    context_length: int
    dtype: str
    product: str | None  #: of the device
    device_count: int
    settings: Mapping[str, Any]  #: model.build.<device kind>
    converter: Environment  #: has torch, transformers and gguf
    serving: Environment  #: the engine's own; a vendor's compiler must be of the version that serves


def steps(source_format: str, wanted: Sequence[str], source: str, shop: Workshop) -> tuple[str, tuple[BuildStep, ...]]:
    """The format that is reached and the steps to it: the fewest, to the format that comes first in `wanted`.

    An empty string for the format where no conversion leads to any of `wanted`.
    """
    reached: dict[str, tuple[BuildStep, ...]] = {source_format: ()}
    for (start, end), make in _CONVERSIONS.items():  # in an order in which every start comes before its use
        if start in reached and end not in reached:
            before = reached[start]
            reached[end] = (*before, make(before[-1].output if before else source, shop))
    for name in wanted:
        if name in reached:
            return name, reached[name]
    return "", ()


def reachable(source_format: str) -> frozenset[str]:
    """The formats that conversions lead to from `source_format`, itself included."""
    reached = {source_format}
    for start, end in _CONVERSIONS:
        if start in reached:
            reached.add(end)
    return frozenset(reached)


def run(step: BuildStep, progress: Progress) -> None:
    """Make the artifact of `step` unless it is there. Raises `PrepareError` with the command's last lines."""
    output = Path(step.output)
    if output.exists():
        return
    ensure(step.environment, progress)
    log = output.with_name(f"{output.name}.log")
    with (
        progress.stage("build", step.name),
        made_once(output, lambda: progress.detail("waiting for another launch that builds the same")) as folder,
    ):
        if folder is None:
            return
        path = f"{step.environment.bin}:{os.environ.get('PATH', os.defpath)}"
        with tempfile.TemporaryDirectory(prefix="rml-") as temporary, log.open("w") as stream:
            given = Path(temporary, "files")
            _write_files(step, given)
            argv = [word.replace(OUTPUT, str(folder)).replace(FILES, str(given)) for word in step.argv]
            env = {**os.environ, "PATH": path, "TMPDIR": temporary, **step.env}
            code, tail = commands.run(argv, env, progress.detail, log=stream)
        if code:
            last = "\n  ".join(tail)
            raise PrepareError(f"build step {step.name} exited {code} (log: {log}):\n  {last}")


def _write_files(step: BuildStep, folder: Path) -> None:
    for name, text in step.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _gguf_to_safetensors(source: str, shop: Workshop) -> BuildStep:
    script = str(shop.templates / "convert/gguf_to_safetensors.py")
    return BuildStep(
        name="gguf-to-safetensors",
        argv=(f"{shop.converter.bin}/python", script, source, OUTPUT),
        output=_artifact(shop, "safetensors", ["gguf-to-safetensors", shop.converter.requirements]),
        environment=shop.converter,
        env={"HF_HUB_OFFLINE": "1"},
    )


def _compile_rbln(source: str, shop: Workshop) -> BuildStep:
    """`optimum-rbln-cli` of SDK 0.12; compiles on a host without an NPU too, for the product that is named."""
    settings = {
        "batch_size": 1,
        "max_seq_len": shop.context_length,
        **_attention(shop),
        **shop.settings,
        "num_devices": shop.device_count,
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    flags += ["--hf-dtype", shop.dtype, *(("--npu", shop.product) if shop.product else ())]
    return BuildStep(
        name="optimum-rbln-compile",
        argv=(f"{shop.serving.bin}/optimum-rbln-cli", "--model-id", source, "-o", OUTPUT, *flags),
        output=_artifact(shop, "rbln", [settings, shop.dtype, shop.product, shop.serving.requirements]),
        environment=shop.serving,
    )


def _attention(shop: Workshop) -> Mapping[str, Any]:
    """Up to a length that the chip sets, attention is eager; beyond it, flash attention, in partitions of it."""
    length = shop.context_length
    if "attn_impl" in shop.settings:
        return {}
    block = chip(shop.product).block_size(length, f"model.context_length={length}")
    return {} if block == length else {"attn_impl": "flash_attn", "kvcache_partition_len": block}


_CONVERSIONS = {
    ("gguf", "safetensors"): _gguf_to_safetensors,
    ("safetensors", "rbln"): _compile_rbln,
}


def _artifact(shop: Workshop, kind: str, profile: object) -> str:
    key = hashlib.sha256(json.dumps([shop.identity, profile], default=str).encode()).hexdigest()[:12]
    return str(artifacts(shop.cache) / f"{shop.model_id}-{kind}-{key}")
