"""The sizes of a model that decide its memory: counted in its files, or declared if they are not fetched yet.

The sources are a Hugging Face folder (config.json and the headers of the safetensors files), a GGUF file's header, a
folder that optimum-rbln compiled, and `model.facts` of the config. Nothing is loaded, and what cannot be read counts
as unknown.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from launcher.config.schema import FactsConf, ModelConf

#: bits of one element; 4.5 are what common 4-bit formats take with their scales
BITS: Mapping[str, float] = {
    "float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "float8": 8, "int8": 8, "int4": 4.5,
    # llama.cpp's names for a KV cache (ggml-common.h): 32 elements share their scales
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5,
}  # fmt: skip
#: safetensors' names of the dtypes that a server casts to the one it serves in
_CAST = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: architecture → N: all but every Nth layer have a sliding window, which config.json does not say
_WINDOW_EVERY = {"gemma2": 2, "gemma3_text": 6}
_MOST_HEADER_BYTES = 100 << 20  #: safetensors' own limit


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The sizes of one model; None is unknown."""

    origin: str  #: source of the facts, for people
    parameters: int | None = None  #: elements that are cast to the serving dtype
    fixed_bytes: int = 0  #: bytes of weights that are never cast: quantized ones
    stored_bytes: int | None = None  #: bytes of all weights as they are in the file
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None  #: elements of a key
    value_dim: int | None = None  #: elements of a value; None is as many as a key
    latent_dim: int | None = None  #: elements per token and layer that stand for keys and values (MLA)
    intermediate: int | None = None
    vocab: int | None = None
    tied: bool = False  #: the output uses the input embeddings
    experts: int | None = None
    window: int | None = None  #: tokens that the layers with a sliding window keep
    window_layers: int = 0
    stateless_layers: int = 0  #: layers that keep nothing per token (linear attention)
    dtype: str | None = None  #: dtype of the stored weights
    quantization: str | None = None
    native_context: int | None = None
    num_devices: int | None = None  #: number of devices that the model was compiled for

    def weights(self, dtype: str, *, as_stored: bool = False) -> int | None:
        """Return the bytes of all weights, served in `dtype`; None if unknown."""
        if as_stored:
            return self.stored_bytes
        return None if self.parameters is None else size(self.parameters, dtype) + self.fixed_bytes

    def kv_cache(self, tokens: int, dtype: str) -> int | None:
        """Return the bytes that one sequence of `tokens` takes in the KV cache of all layers; None if unknown."""
        width = self.latent_dim
        if width is None and self.kv_heads and self.head_dim:
            width = self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim))
        if width is None or self.layers is None:
            return None
        whole = self.layers - self.window_layers - self.stateless_layers
        positions = whole * tokens + self.window_layers * min(tokens, self.window or tokens)
        return size(width * positions, dtype)


def size(elements: int, dtype: str) -> int:
    """Return the bytes of `elements` numbers. Raises `KeyError` for a dtype that is not in `BITS`."""
    return -(-int(elements * BITS[dtype]) // 8)


def of(conf: ModelConf, path: Path) -> ModelFacts | None:
    """Return the facts of the model that lies, or will lie, at `path`; None if nothing is known.

    Declared facts come first, if they are of this very source: a launch has no time to read a long header for known
    numbers, and a test compares them with the files.
    """
    if conf.facts and conf.source.startswith(conf.facts.of):
        return declared(conf.facts)
    try:
        return _read(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None  # not there, or not what its name says; the engine will say so better


def declared(facts: FactsConf) -> ModelFacts:
    """Return `model.facts`, which are in the words of a config.json."""
    config = {key: value for key, value in dataclasses.asdict(facts).items() if value is not None}
    known = of_config(config, f"model.facts of {facts.of}")
    return dataclasses.replace(
        known, parameters=facts.parameters, stored_bytes=facts.stored_bytes, dtype=facts.dtype or known.dtype
    )


def _read(path: Path) -> ModelFacts | None:
    if path.is_dir():
        return of_compiled(path) if (path / "rbln_config.json").is_file() else of_folder(path)
    if path.suffix.lower() == ".gguf":
        return of_gguf(path)
    return ModelFacts(str(path), parameters=0, fixed_bytes=path.stat().st_size, stored_bytes=path.stat().st_size)


def of_folder(folder: Path) -> ModelFacts:
    """Read a Hugging Face folder: config.json, and the weights counted in the headers of its safetensors files."""
    facts = of_config(json.loads((folder / "config.json").read_text()), str(folder))
    files = sorted(folder.glob("*.safetensors"))
    if (index := folder / "model.safetensors.index.json").is_file():  # the others may be the same weights again
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    parameters = fixed = stored = 0
    kinds: dict[str, int] = {}
    for file in files:
        for name, elements, data in tensors(file):
            stored += data
            parameters += elements if name in _CAST else 0
            fixed += 0 if name in _CAST else data
            kinds[name] = kinds.get(name, 0) + elements
    if not files:
        return facts
    most = max(kinds, key=lambda name: kinds[name], default="")
    dtype = _CAST.get(most, facts.dtype)
    return dataclasses.replace(facts, parameters=parameters, fixed_bytes=fixed, stored_bytes=stored, dtype=dtype)


def tensors(file: Path) -> list[tuple[str, int, int]]:
    """Return dtype, elements and bytes of each tensor of a safetensors file. Raises `ValueError` for any other file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MOST_HEADER_BYTES, file.stat().st_size):
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return [
        (tensor["dtype"], prod(tensor["shape"]), tensor["data_offsets"][1] - tensor["data_offsets"][0])
        for tensor in header.values()
    ]


def of_config(config: Mapping[str, Any], origin: str) -> ModelFacts:
    """Read a model's config.json. If the model also sees or hears, its text part is read: that keeps the cache."""
    config = {**config, **(config.get("text_config") or {})}
    heads, hidden = _first(config, "num_attention_heads", "n_head"), _first(config, "hidden_size", "n_embd")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    latent = config.get("kv_lora_rank")
    wide = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    inner = _first(config, "intermediate_size", "n_inner", "ffn_dim")
    kinds = config.get("layer_types") or []
    window, windowed = _window(config, layers or 0, kinds)
    quantization = (config.get("quantization_config") or {}).get("quant_method")
    return ModelFacts(
        origin=origin,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=1
        if config.get("multi_query") is True
        else _first(config, "num_key_value_heads", "num_kv_heads") or heads,
        head_dim=wide,
        value_dim=config.get("v_head_dim"),
        latent_dim=latent + config.get("qk_rope_head_dim", 0) if latent else None,
        intermediate=inner or (4 * hidden if hidden else None),
        vocab=config.get("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=_first(config, "num_local_experts", "n_routed_experts", "num_experts"),
        window=window,
        window_layers=windowed,
        stateless_layers=sum(kind in ("linear_attention", "mamba", "conv") for kind in kinds),
        dtype=_dtype(config.get("dtype") or config.get("torch_dtype")),
        quantization=str(quantization) if quantization else None,
        native_context=_first(config, "max_position_embeddings", "n_positions"),
    )


def _window(config: Mapping[str, Any], layers: int, kinds: list[str]) -> tuple[int | None, int]:
    """Return the tokens of a sliding window (None without one), and the number of layers that have it."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return None, 0
    if kinds:
        return window, sum(kind == "sliding_attention" for kind in kinds)
    every = config.get("sliding_window_pattern") or _WINDOW_EVERY.get(str(config.get("model_type")))
    if every == 2:  # alternating
        return window, -(-layers // 2)
    return window, layers - layers // every if every else layers


def of_gguf(file: Path) -> ModelFacts | None:
    """Read a GGUF file's header; None for a form that is not supported (version 1, big-endian)."""
    from launcher.fit import gguf_header  # not at the top: most launches do not need it, and all would wait

    header = gguf_header.read(file)
    if header is None:
        return None
    told = header.told
    heads = _most(told("attention.head_count"))
    hidden = told("embedding_length")
    wide = told("attention.key_length") or (hidden // heads if hidden and heads else None)
    experts, window = told("expert_count"), told("attention.sliding_window")
    layers = told("block_count")
    return ModelFacts(
        origin=str(file),
        parameters=header.elements,
        stored_bytes=header.stored_bytes,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_most(told("attention.head_count_kv")) or heads,
        head_dim=wide,
        value_dim=told("attention.value_length"),
        intermediate=_most(told("feed_forward_length")),
        vocab=told("vocab_size") or header.tokens,
        tied="output.weight" not in header.tensors,
        experts=experts,
        window=window,
        window_layers=_window({"sliding_window": window, "model_type": header.architecture}, layers or 0, [])[1],
        quantization=header.quantization,
        native_context=told("context_length"),
    )


def of_compiled(folder: Path) -> ModelFacts:
    """Read a folder that optimum-rbln compiled: only the compiler knows how its weights lie on the NPUs."""
    compiled = json.loads((folder / "rbln_config.json").read_text())
    counts = [part.get("num_devices") or part.get("tensor_parallel_size") for part in compiled.get("_compile_cfgs", [])]
    config = folder / "config.json"
    facts = of_config(json.loads(config.read_text()) if config.is_file() else {}, str(folder))
    return dataclasses.replace(facts, num_devices=max((count for count in counts if count), default=None))


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of `names` that is set: config.json has several words for the same number."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _most(value: Any) -> int | None:
    """Return the largest of `value`: some architectures give a number for each layer."""
    return max(value, default=None) if isinstance(value, list) else value


def _dtype(name: object) -> str | None:
    plain = str(name).removeprefix("torch.")
    return plain if plain in BITS else None
