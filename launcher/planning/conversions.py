"""Convert between model formats: the steps from a source to a format that an engine reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.base import OUTPUT, BuildProfile, BuildStep, TensorSpec
from launcher.planning.workshop import Workshop

if TYPE_CHECKING:
    pass


def steps(source_format: str, wanted: Sequence[str], source: str, shop: Workshop) -> tuple[str, tuple[BuildStep, ...]]:
    """Return the reached format and the steps to it: the fewest, to the format that comes first in `wanted`.

    The format is empty if no conversion leads to any of `wanted`.
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
    """Chain the conversions: each step reads the output of the one before it."""
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
    """Return the formats that conversions lead to from `source_format`, itself included."""
    reached = {source_format}
    for start, end in (*_CONVERSIONS, *((name, "npu") for name in compiled_from)):
        if start in reached:
            reached.add(end)
    return frozenset(reached)


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


#: inputs and outputs of the model that `_export_onnx` makes
EXPORTED: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = (
    (TensorSpec("input_ids", "int64", (-1, -1)), TensorSpec("attention_mask", "int64", (-1, -1))),
    (TensorSpec("last_hidden_state", "float32", (-1, -1, -1)),),
)


def _export_onnx(source: str, shop: Workshop) -> BuildStep:
    """Export a transformer's body: token numbers in, hidden states out."""
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
    """Compile with `optimum-rbln-cli` of SDK 0.12, also on a host without an NPU, for the product that is named."""
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
    """Return the attention flags: eager up to the chip's block length, beyond it flash attention in such blocks."""
    length = shop.context_length
    if "attn_impl" in shop.settings:
        return {}
    from engines.rbln_sdk import chip  # the other conversions do without its tables

    block = chip(shop.product).block_size(length, f"model.context_length={length}")
    return {} if block == length else {"attn_impl": "flash_attn", "kvcache_partition_len": block}


_Conversion = Callable[[str, Workshop], BuildStep]

_CONVERSIONS: Mapping[tuple[str, str], _Conversion] = {
    ("gguf", "safetensors"): _gguf_to_safetensors,
    ("safetensors", "onnx"): _export_onnx,
    ("safetensors", "rbln"): _compile_rbln,
}
