"""Facts of models: counted in files written out here and in real ones, declared in conf/model, and never guessed."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launcher.config import model_source
from launcher.config.compose import compose, options
from launcher.config.schema import FactsConf, ModelConf
from launcher.fit import gguf_header, model_facts
from launcher.fit.model_facts import ModelFacts
from launcher.paths import cache_root, shipped
from launcher.planning import environments
from launcher.prepare import models
from launcher.prepare.environments import ensure
from launcher.progress import Progress

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}  # fmt: skip
DENSE = [name for name in options("model") if name not in ("gpt2", "minilm", "remote")]


def conf_facts(name: str) -> FactsConf:
    """Without Hydra, which takes its time for each."""
    return FactsConf(**OmegaConf.load(shipped("conf") / f"model/{name}.yaml").facts)


def conf_of(path: Path) -> ModelConf:
    return ModelConf("m", f"file:{path}", task="generate", context_length=1024, dtype="bfloat16", chat=False)


# ------------------------------------------------------------------------------------------------------- config.json


def test_the_cache_of_llama_3_8b_is_128_kib_a_token() -> None:
    facts = model_facts.of_config(LLAMA, "here")

    assert facts.head_dim == 128
    assert facts.kv_cache(1, "bfloat16") == 131072
    assert facts.kv_cache(8192, "bfloat16") == 1 << 30
    assert facts.kv_cache(8192, "float8") == 1 << 29


def test_words_of_older_models_are_understood() -> None:
    facts = model_facts.of_config({"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}, "here")

    assert (facts.layers, facts.hidden, facts.heads, facts.kv_heads, facts.head_dim) == (12, 768, 12, 12, 64)
    assert (facts.intermediate, facts.native_context) == (3072, 1024)


def test_a_latent_cache_has_one_vector_for_all_heads() -> None:
    """DeepSeek-V3: 512 + 64 elements for each token and layer, whatever the 128 heads are."""
    config = LLAMA | {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_routed_experts": 256}
    facts = model_facts.of_config(config, "here")

    assert facts.kv_cache(1, "bfloat16") == 61 * 576 * 2
    assert facts.experts == 256


@pytest.mark.parametrize(
    ("window", "layers"),
    [
        ({}, 0),
        ({"sliding_window": None}, 0),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0),
        ({"sliding_window": 4096}, 32),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16),
        ({"sliding_window": 4096, "model_type": "gemma3_text"}, 27),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 29}, 3),
    ],
)
def test_layers_with_a_sliding_window_keep_no_more_than_it(window: Mapping[str, Any], layers: int) -> None:
    facts = model_facts.of_config({**LLAMA, **window}, "here")

    assert facts.window_layers == layers
    assert facts.kv_cache(8192, "bfloat16") == 4096 * (32 - layers) * 8192 + 4096 * layers * min(8192, 4096)
    assert facts.kv_cache(1024, "bfloat16") == 32 * 4096 * 1024


def test_layers_of_linear_attention_keep_nothing_for_a_token() -> None:
    kinds = ["linear_attention"] * 24 + ["full_attention"] * 8
    facts = model_facts.of_config({**LLAMA, "layer_types": kinds}, "here")

    assert facts.kv_cache(1, "bfloat16") == 131072 // 4


def test_what_is_not_said_is_not_known() -> None:
    facts = model_facts.of_config({}, "here")

    assert facts.kv_cache(1024, "bfloat16") is None
    assert facts.weights("bfloat16") is None


def test_of_a_model_that_sees_the_part_that_writes_counts() -> None:
    assert model_facts.of_config({"text_config": LLAMA, "hidden_size": 1}, "here").hidden == 4096


# ------------------------------------------------------------------------------------------------------- safetensors


def safetensors(file: Path, tensors: Mapping[str, tuple[str, list[int], int]]) -> None:
    """Only the header, and as many bytes behind it as it says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, length) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def test_weights_are_counted_in_the_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    safetensors(tmp_path / "a.safetensors", {"w": ("BF16", [4, 8], 64), "v": ("BF16", [8], 16)})
    safetensors(tmp_path / "b.safetensors", {"x": ("BF16", [2], 4)})

    facts = model_facts.of_folder(tmp_path)

    assert (facts.parameters, facts.stored_bytes, facts.dtype) == (42, 84, "bfloat16")
    assert (facts.weights("bfloat16"), facts.weights("float32")) == (84, 168)


def test_quantized_weights_keep_their_form_whatever_is_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": {"quant_method": "gptq"}}))
    safetensors(tmp_path / "a.safetensors", {"q": ("I32", [16], 64), "scales": ("F16", [4], 8)})

    facts = model_facts.of_folder(tmp_path)

    assert facts.quantization == "gptq"
    assert (facts.weights("bfloat16"), facts.weights("float32")) == (64 + 8, 64 + 16)


def test_of_two_sets_of_the_same_weights_the_index_says_which_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for name in ("model-00001-of-00001.safetensors", "consolidated.safetensors"):
        safetensors(tmp_path / name, {"w": ("BF16", [8], 16)})
    index = {"metadata": {"total_size": 16}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert model_facts.of_folder(tmp_path).stored_bytes == 16


# -------------------------------------------------------------------------------------------------------------- GGUF


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, list[int]], data: int = 0, version: int = 3) -> bytes:
    """A GGUF file of F32 tensors with `data` bytes of them."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    def value(item: Any) -> bytes:
        if isinstance(item, str):
            return struct.pack("<I", 8) + string(item)
        if isinstance(item, list) and isinstance(item[0], str):
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
        if isinstance(item, list):
            return struct.pack("<IIQ", 9, 4, len(item)) + struct.pack(f"<{len(item)}I", *item)
        return struct.pack("<II", 4, item)

    body = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    body += b"".join(string(key) + value(item) for key, item in metadata.items())
    for name, shape in tensors.items():
        body += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    return body + bytes(-len(body) % 32) + bytes(data)


METADATA = {
    "general.architecture": "llama", "general.file_type": 15, "llama.block_count": 4, "llama.context_length": 512,
    "llama.embedding_length": 64, "llama.feed_forward_length": 128, "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": [2, 2, 1, 2], "tokenizer.ggml.tokens": ["a", "bb", "ccc"],
    "tokenizer.ggml.scores": list(range(5000)),
}  # fmt: skip


def test_a_gguf_header_says_it_all(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(METADATA, {"token_embd.weight": [64, 3], "blk.0.w": [64]}, data=1000))

    header = gguf_header.read(file)

    assert header is not None
    assert "tokenizer.ggml.scores" not in header.metadata
    assert header.lengths == {"tokenizer.ggml.tokens": 3, "tokenizer.ggml.scores": 5000}
    assert model_facts.of_gguf(file) == ModelFacts(
        origin=str(file), parameters=256, stored_bytes=1000, layers=4, hidden=64, heads=8, kv_heads=2, head_dim=8,
        intermediate=128, vocab=3, tied=True, quantization="Q4_K_M", native_context=512,
    )  # fmt: skip


def test_a_model_in_several_files_is_counted_whole_or_not_at_all(tmp_path: Path) -> None:
    for part in (1, 2):
        name = f"m-0000{part}-of-00002.gguf"
        (tmp_path / name).write_bytes(gguf(METADATA if part == 1 else {}, {f"w{part}": [10 * part]}, data=100 * part))
    first = tmp_path / "m-00001-of-00002.gguf"

    facts = model_facts.of_gguf(first)
    (tmp_path / "m-00002-of-00002.gguf").unlink()

    assert facts is not None
    assert (facts.parameters, facts.stored_bytes) == (30, 300)
    with pytest.raises(ValueError, match="not all of them are there"):
        gguf_header.read(first)


def test_a_version_that_is_not_read_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(METADATA, {}, version=1))

    assert model_facts.of_gguf(tmp_path / "m.gguf") is None


WHOLE = gguf(METADATA, {"w": [64]})


@settings(max_examples=60)
@given(st.one_of(
    st.binary(max_size=200),
    st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]),
    st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=9)).map(
        lambda hit: WHOLE[: hit[0]] + hit[1] + WHOLE[hit[0] + len(hit[1]) :]
    ),
))  # fmt: skip
def test_a_damaged_file_is_no_reason_to_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("damaged") / "m.gguf"
    file.write_bytes(data)

    known = model_facts.of(conf_of(file), file)

    assert known is None or known.origin == str(file)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"num_hidden_layers": "many", "layer_types": 7}', "{", '{"a": [[[']
)
def test_a_config_that_is_none_is_not_known(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    assert model_facts.of(conf_of(tmp_path), tmp_path) is None


# ------------------------------------------------------------------------------------------------ compiled, declared


def test_a_compiled_folder_says_for_how_many_devices(tmp_path: Path) -> None:
    compiled = {"max_seq_len": 8192, "_compile_cfgs": [{"compiled_model_name": "prefill", "num_devices": 4}]}
    (tmp_path / "rbln_config.json").write_text(json.dumps(compiled))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    facts = model_facts.of_compiled(tmp_path)

    assert (facts.num_devices, facts.layers, facts.weights("bfloat16")) == (4, 32, None)


def test_declared_facts_are_those_of_their_own_source_alone(tmp_path: Path) -> None:
    ours = compose(["model=llama3-8b"]).model
    another = compose(["model=llama3-8b", "model.source=hf:me/mine@main"]).model

    known = model_facts.of(ours, tmp_path / "not-here")

    assert known is not None
    assert known.weights("bfloat16") == 16_060_522_496  # metadata.total_size of its published index
    assert model_facts.of(another, tmp_path / "not-here") is None


@pytest.mark.parametrize("name", DENSE)
def test_declared_parameters_are_those_of_the_declared_shapes(name: str) -> None:
    facts = model_facts.declared(conf_facts(name))
    sizes = (facts.hidden, facts.intermediate, facts.layers, facts.heads, facts.kv_heads, facts.head_dim, facts.vocab)
    hidden, inner, layers, heads, kv_heads, wide, vocab = (size or 0 for size in sizes)
    queries, keys = heads * wide, kv_heads * wide
    norms = 4 * hidden if name == "gemma2-2b" else 2 * hidden
    biases = queries + 2 * keys if name.startswith("qwen2.5") else 0
    norms += 2 * wide if name.startswith("qwen3") else 0
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * inner + norms + biases
    embeddings = vocab * hidden * (1 if facts.tied else 2)

    assert facts.parameters == embeddings + layers * layer + hidden


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_declared_facts_are_what_the_files_say(name: str) -> None:
    conf = compose([f"model={name}"]).model
    source = model_source.parse(conf.source)
    models.fetch(source, cache_root(), Progress(quiet=True))
    path = source.path(cache_root())

    said = model_facts.declared(conf_facts(name))
    counted = model_facts.of_gguf(path) if path.is_file() else model_facts.of_folder(path)

    assert counted is not None
    for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "native_context"):
        assert getattr(said, field) == getattr(counted, field)
    assert said.parameters == counted.parameters
    assert said.stored_bytes in (None, counted.stored_bytes)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_real_gguf_file_is_read_as_its_own_library_reads_it() -> None:
    conf = compose(["model=smollm2"])
    source = model_source.parse(conf.model.source)
    models.fetch(source, cache_root(), Progress(quiet=True))
    environment = environments.describe("convert", "managed", conf.builders["convert"], cache_root())
    ensure(environment, Progress(quiet=True))
    file = source.path(cache_root())
    code = (
        "import sys, gguf, json\n"
        "reader = gguf.GGUFReader(sys.argv[1])\n"
        "print(json.dumps([{t.name: int(t.n_elements) for t in reader.tensors}, "
        "sum(int(t.n_bytes) for t in reader.tensors), len(reader.get_field('tokenizer.ggml.tokens').data), "
        "reader.get_field('llama.attention.head_count_kv').contents()]))\n"
    )
    done = subprocess.run(
        [f"{environment.bin}/python", "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    tensors, stored, tokens, kv_heads = json.loads(done.stdout)

    header = gguf_header.read(file)

    assert header is not None
    assert dict(header.tensors) == tensors
    assert (header.stored_bytes, header.tokens, header.told("attention.head_count_kv")) == (stored, tokens, kv_heads)
