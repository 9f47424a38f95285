"""What users may ask of vLLM-RBLN, what we plan for it, and what the real one makes of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.base import Device, Model

ATOM, REBEL, NEXT_REBEL = "RBLN-CA25", "RBLN-CR03", "RBLN-CR13"

WEIGHTS = Model("m", "file:/m", "safetensors", "weights", context_length=8192, batch_size=4)
FOLDER = replace(WEIGHTS, format="rbln", path="compiled")
EMBEDDER = replace(WEIGHTS, task="embed", path="embedder", context_length=512)


def long(context_length: int) -> Model:
    return replace(WEIGHTS, context_length=context_length)


def npus(count: int, product: str | None = ATOM) -> Device:
    return Device("rbln", tuple(range(count)), product)


@dataclass(frozen=True)
class Good:
    """`wanted` is planned as `args`, and the real vllm-rbln makes `served` of them."""

    name: str
    model: Model
    device: Device
    wanted: Mapping[str, Any]
    args: Mapping[str, Any]
    served: Mapping[str, Any]


def options(**values: Any) -> Mapping[str, Any]:
    return {"additional_config": values}


def native(**values: Any) -> Mapping[str, Any]:
    return {"model_impl": "vllm", **values}


_EAGER = {
    "dtype": "bfloat16",
    "max_model_len": 8192,
    "block_size": 8192,
    "max_num_seqs": 4,
    "model_impl": "optimum",
    "additional_config": {"num_devices_per_local_rank": 4},
}
_SERVED = {
    "num_devices": 4,
    "block_size": 8192,
    "max_num_seqs": 4,
    "max_model_len": 8192,
    "max_num_batched_tokens": 128,
    "prefix_caching": True,
    "dtype": "bfloat16",
}
_NATIVE = {
    "dtype": "bfloat16",
    "max_model_len": 8192,
    "block_size": 4096,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 4,
    "model_impl": "vllm",
    "tensor_parallel_size": 4,
}
_RANKS = {
    "ranks": 4,
    "buckets": [4],
    "sub_block_size": 512,
    "block_size": 4096,
    "max_num_seqs": 4,
    "max_model_len": 8192,
    "max_num_batched_tokens": 512,
}
_NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}

GOOD = [
    Good("weights on four ATOMs", WEIGHTS, npus(4), {}, _EAGER, _SERVED),
    Good("an unknown NPU is an ATOM", WEIGHTS, npus(4, None), {"seed": None, **options(sub_block_size=None)}, _EAGER,
         _SERVED),
    Good("one NPU, names of ours and theirs", replace(WEIGHTS, batch_size=None), npus(1),
         {"served_model_name": "m", "model_impl": "transformers", "tensor_parallel_size": 1, "dtype": "float32",
          "gpu_memory_utilization": 0.5},
         {**_EAGER, "max_num_seqs": 1, "served_model_name": "m", "tensor_parallel_size": 1, "dtype": "float32",
          "gpu_memory_utilization": 0.5, "additional_config": {"num_devices_per_local_rank": 1}},
         {**_SERVED, "num_devices": 1, "max_num_seqs": 1, "dtype": "float32"}),
    Good("beyond eager attention", long(131072), npus(8), {"max_num_seqs": 1},
         {**_EAGER, "max_model_len": 131072, "block_size": 16384, "max_num_seqs": 1,
          "additional_config": {"num_devices_per_local_rank": 8}},
         {**_SERVED, "num_devices": 8, "block_size": 16384, "max_num_seqs": 1, "max_model_len": 131072}),
    Good("a partition that divides an odd length", long(36864), npus(4), {},
         {**_EAGER, "max_model_len": 36864, "block_size": 4096},
         {**_SERVED, "max_model_len": 36864, "block_size": 4096}),
    Good("REBEL's shorter eager attention", long(32768), npus(1, REBEL), {},
         {**_EAGER, "max_model_len": 32768, "block_size": 8192, "additional_config": {"num_devices_per_local_rank": 1}},
         {**_SERVED, "num_devices": 1, "max_model_len": 32768, "max_num_batched_tokens": 512}),
    Good("everything said", WEIGHTS, npus(4),
         {"max_model_len": 4096, "block_size": 1024, "max_num_seqs": 2, "max_num_batched_tokens": 256,
          **options(sub_block_size=512, use_custom_sampler=False, num_devices_per_local_rank=4,
                    optimum_overrides={"device": [0, 1, 2, 3]})},
         {**_EAGER, "max_model_len": 4096, "block_size": 1024, "max_num_seqs": 2, "max_num_batched_tokens": 256,
          "additional_config": {"sub_block_size": 512, "use_custom_sampler": False, "num_devices_per_local_rank": 4,
                                "optimum_overrides": {"device": [0, 1, 2, 3]}}},
         {**_SERVED, "max_model_len": 4096, "block_size": 1024, "max_num_seqs": 2, "max_num_batched_tokens": 256}),
    Good("the longest eager attention, the least chunk", long(32768), npus(4),
         {"block_size": 32768, "max_num_seqs": 64, "max_num_batched_tokens": 64},
         {**_EAGER, "max_model_len": 32768, "block_size": 32768, "max_num_seqs": 64, "max_num_batched_tokens": 64},
         {**_SERVED, "max_model_len": 32768, "block_size": 32768, "max_num_seqs": 64, "max_num_batched_tokens": 64}),
    Good("an odd length without prefix caching", long(1000), npus(4), {"enable_prefix_caching": False},
         {**_EAGER, "max_model_len": 1000, "block_size": 1000, "enable_prefix_caching": False},
         {**_SERVED, "max_model_len": 1000, "block_size": 1000, "prefix_caching": False}),
    Good("an embedder", EMBEDDER, npus(1), {},
         {**_EAGER, "max_model_len": 512, "block_size": 512, "runner": "pooling",
          "additional_config": {"num_devices_per_local_rank": 1}},
         {**_SERVED, "num_devices": 1, "max_model_len": 512, "block_size": 512, "max_num_batched_tokens": 512,
          "prefix_caching": False}),
    Good("a compiled folder", FOLDER, npus(4), {}, {"max_num_seqs": 4}, _SERVED),
    Good("a compiled folder of which less is known", replace(FOLDER, batch_size=None), npus(4), {}, {}, _SERVED),
    Good("a compiled folder and what it says itself", FOLDER, npus(4),
         {"max_num_seqs": 4, "max_model_len": 8192, "dtype": "bfloat16", "model_impl": "optimum", "seed": 7,
          **options(num_devices_per_local_rank=4, sub_block_size=256, optimum_overrides={"device": [0, 1, 2, 3]})},
         {"max_num_seqs": 4, "seed": 7,
          "additional_config": {"sub_block_size": 256, "optimum_overrides": {"device": [0, 1, 2, 3]}}},
         _SERVED),
    Good("vLLM's own model on four REBELs", WEIGHTS, npus(4, REBEL), native(), _NATIVE, _RANKS),
    Good("stages, replicas and ranks", WEIGHTS, npus(8, REBEL), native(pipeline_parallel_size=2, data_parallel_size=2),
         {**_NATIVE, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2},
         {**_RANKS, "ranks": 8, "buckets": [2]}),
    Good("as many sequences as stages, as many sub-blocks as chunks", WEIGHTS, npus(2, REBEL),
         native(pipeline_parallel_size=2, max_num_seqs=2, **options(sub_block_size=512)),
         {**_NATIVE, "tensor_parallel_size": 1, "pipeline_parallel_size": 2, "max_num_seqs": 2,
          "additional_config": {"sub_block_size": 512}},
         {**_RANKS, "ranks": 2, "buckets": [1], "max_num_seqs": 2}),
    Good("as many tokens as sequences", WEIGHTS, npus(4, REBEL), native(max_num_batched_tokens=4),
         {**_NATIVE, "max_num_batched_tokens": 4}, {**_RANKS, "max_num_batched_tokens": 4, "sub_block_size": 4}),
    Good("what only replicas forbid", WEIGHTS, npus(4, REBEL),
         native(max_num_seqs=3, **options(use_moe_tokens_mask=False)),
         {**_NATIVE, "max_num_seqs": 3, "additional_config": {"use_moe_tokens_mask": False}},
         {**_RANKS, "max_num_seqs": 3, "buckets": [3]}),
    Good("what fits no flash attention", long(10000), npus(1, REBEL), native(),
         {**_NATIVE, "max_model_len": 10000, "block_size": 10000, "tensor_parallel_size": 1},
         {**_RANKS, "ranks": 1, "max_model_len": 10000, "block_size": 10000, "sub_block_size": None}),
    Good("options of the vLLM path", WEIGHTS, npus(1, NEXT_REBEL),
         native(block_size=2048, max_num_batched_tokens=1024, speculative_config=_NGRAM,
                **options(sub_block_size=256, use_dynamic_kv_cache=True, compile_dtype="bfloat16",
                          decode_batch_bucket_strategy="manual", decode_batch_bucket_manual_buckets=[1, 4])),
         {**_NATIVE, "block_size": 2048, "max_num_batched_tokens": 1024, "tensor_parallel_size": 1,
          "speculative_config": _NGRAM,
          "additional_config": {"sub_block_size": 256, "use_dynamic_kv_cache": True, "compile_dtype": "bfloat16",
                                "decode_batch_bucket_strategy": "manual",
                                "decode_batch_bucket_manual_buckets": [1, 4]}},
         {**_RANKS, "ranks": 1, "buckets": [1, 4], "sub_block_size": 256, "block_size": 2048,
          "max_num_batched_tokens": 1024}),
]  # fmt: skip
