"""Conversions between model formats: which steps lead from a source to what an engine reads, and doing them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import FILES, OUTPUT, BuildProfile, BuildStep, Environment, PrepareError, TensorSpec
from engines.rbln_sdk import chip
from launcher import artifacts, commands
from launcher.atomic import made_once
from launcher.environments import ensure
from launcher.inheritance import inherited
from launcher.progress import Progress

if TYPE_CHECKING:
    from launcher.adapters.compiler import BinaryCompilerAdapter


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
    exporter: Environment  #: has torch, transformers and onnx
    serving: Environment  #: the engine's own; a vendor's compiler must be of the version that serves
    compiler: BinaryCompilerAdapter | None = None  #: of a device that a config declares
    compiler_version: str = ""

    @property
    def artifacts(self) -> Path:
        return artifacts.folder(self.cache)


def steps(source_format: str, wanted: Sequence[str], source: str, shop: Workshop) -> tuple[str, tuple[BuildStep, ...]]:
    """The format that is reached and the steps to it: the fewest, to the format that comes first in `wanted`.

    An empty string for the format where no conversion leads to any of `wanted`.
    """
    conversions = {**_CONVERSIONS, **_declared(shop)}
    reached: dict[str, tuple[_Conversion, ...]] = {source_format: ()}
    for (start, end), make in conversions.items():  # in an order in which every start comes before its use
        if start in reached and (end not in reached or len(reached[start]) + 1 < len(reached[end])):
            reached[end] = (*reached[start], make)
    for name in wanted:
        if name in reached:
            return name, _made(reached[name], source, shop)
    return "", ()


def _made(conversions: Sequence[_Conversion], source: str, shop: Workshop) -> tuple[BuildStep, ...]:
    """One step after the other, each of what the one before it makes."""
    made: list[BuildStep] = []
    for make in conversions:
        made.append(make(made[-1].model_path if made else source, shop))
    return tuple(made)


def _declared(shop: Workshop) -> Mapping[tuple[str, str], _Conversion]:
    compiler = shop.compiler
    if compiler is None:
        return {}

    def compiled(source: str, shop: Workshop, *, model_format: str) -> BuildStep:
        return compiler.step(source, model_format, shop, shop.compiler_version)

    return {(name, "npu"): partial(compiled, model_format=name) for name in compiler.reads}


def reachable(source_format: str, compiled_from: Sequence[str] = ()) -> frozenset[str]:
    """The formats that conversions lead to from `source_format`, itself included."""
    reached = {source_format}
    for start, end in (*_CONVERSIONS, *((name, "npu") for name in compiled_from)):
        if start in reached:
            reached.add(end)
    return frozenset(reached)


def run(step: BuildStep, progress: Progress, inherit: Sequence[str] = ()) -> None:
    """Make the artifact of `step` unless it is there. Raises `PrepareError` with the command's last lines.

    The command gets the variables that an engine does, and those that `inherit` names.
    """
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
        began = time.time()
        # Beside the artifact, by a name that the next builder and `artifact prune` remove if we are killed.
        beside = f".{output.name}.partial-tmp-"
        with tempfile.TemporaryDirectory(prefix=beside, dir=output.parent) as temporary, log.open("w") as stream:
            given = Path(temporary, "files")
            _write_files(step, given)
            placed = partial(_placed, output=str(folder), files=str(given))
            env = {
                **inherited(os.environ, inherit),
                "PATH": commands.search_path(step.environment),
                "TMPDIR": temporary,
            }
            env |= {key: placed(value) for key, value in step.env.items()}
            try:
                code, tail = commands.run([placed(word) for word in step.argv], env, progress.detail, log=stream)
            except (FileNotFoundError, PermissionError) as exc:
                raise PrepareError(f"build step {step.name}: {step.argv[0]!r} cannot be run: {exc.strerror}") from exc
        _check(step, code, tail, folder, log)
        artifacts.describe(step, folder, began)


def _check(step: BuildStep, code: int, tail: Sequence[str], folder: Path, log: Path) -> None:
    last = "".join(f"\n  {line}" for line in tail)
    if code:
        meaning = step.meanings.get(str(code))
        ended = f"exited {code}" if code > 0 else f"was ended by signal {-code}"
        raise PrepareError(f"build step {step.name} {ended}{f': {meaning}' if meaning else ''} (log: {log}):{last}")
    if step.made and not (folder / step.made).is_file():
        raise PrepareError(f"build step {step.name} exited 0, but made no {step.made} (log: {log}):{last}")


def _placed(text: str, *, output: str, files: str) -> str:
    return text.replace(OUTPUT, output).replace(FILES, files)


def _write_files(step: BuildStep, folder: Path) -> None:
    for name, text in step.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _gguf_to_safetensors(source: str, shop: Workshop) -> BuildStep:
    script = str(shop.templates / "convert/gguf_to_safetensors.py")
    profile = BuildProfile("any", "gguf-to-safetensors", shop.converter.version, interface="safetensors")
    return BuildStep(
        name="gguf-to-safetensors",
        argv=(f"{shop.converter.bin}/python", script, source, OUTPUT),
        output=profile.place(str(shop.artifacts), shop.model_id, shop.identity),
        environment=shop.converter,
        env={"HF_HUB_OFFLINE": "1"},
        model_id=shop.model_id,
        profile=profile,
    )


#: of what `_export_onnx` makes
EXPORTED: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = (
    (TensorSpec("input_ids", "int64", (-1, -1)), TensorSpec("attention_mask", "int64", (-1, -1))),
    (TensorSpec("last_hidden_state", "float32", (-1, -1, -1)),),
)


def _export_onnx(source: str, shop: Workshop) -> BuildStep:
    """A transformer's body: token numbers in, hidden states out."""
    script = str(shop.templates / "convert/safetensors_to_onnx.py")
    profile = BuildProfile("any", "safetensors-to-onnx", shop.exporter.version, interface="onnx")
    return BuildStep(
        name="safetensors-to-onnx",
        argv=(f"{shop.exporter.bin}/python", "-W", "ignore", script, source, f"{OUTPUT}/model.onnx"),
        output=profile.place(str(shop.artifacts), shop.model_id, shop.identity),
        environment=shop.exporter,
        env={"HF_HUB_OFFLINE": "1"},
        made="model.onnx",
        model_id=shop.model_id,
        profile=profile,
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
    profile = BuildProfile(
        target=shop.product or "rbln",
        compiler="optimum-rbln-cli",
        compiler_version=shop.serving.version,
        flags={**settings, "dtype": shop.dtype},
        interface="rbln",
    )
    return BuildStep(
        name="optimum-rbln-compile",
        argv=(f"{shop.serving.bin}/optimum-rbln-cli", "--model-id", source, "-o", OUTPUT, *flags),
        output=profile.place(str(shop.artifacts), shop.model_id, shop.identity),
        environment=shop.serving,
        model_id=shop.model_id,
        profile=profile,
    )


def _attention(shop: Workshop) -> Mapping[str, Any]:
    """Up to a length that the chip sets, attention is eager; beyond it, flash attention, in partitions of it."""
    length = shop.context_length
    if "attn_impl" in shop.settings:
        return {}
    block = chip(shop.product).block_size(length, f"model.context_length={length}")
    return {} if block == length else {"attn_impl": "flash_attn", "kvcache_partition_len": block}


_Conversion = Callable[[str, Workshop], BuildStep]

_CONVERSIONS: Mapping[tuple[str, str], _Conversion] = {
    ("gguf", "safetensors"): _gguf_to_safetensors,
    ("safetensors", "onnx"): _export_onnx,
    ("safetensors", "rbln"): _compile_rbln,
}
