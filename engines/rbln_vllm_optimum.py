"""vllm-rbln's optimum path: graphs that optimum-rbln compiled, beforehand (a folder) or as the server starts."""

from __future__ import annotations

from typing import Any

from engines.base import Device, Model, PlanError
from engines.rbln_sdk import Chip, chip
from engines.rbln_vllm_args import VllmArgs

#: argument that a compiled folder fixes → the key with which to compile another folder
_FIXED = {
    "max_num_seqs": "model.build.rbln.batch_size",
    "max_model_len": "model.context_length",
    "dtype": "model.dtype",
    "block_size": "model.build.rbln.kvcache_partition_len",
    "max_num_batched_tokens": "model.build.rbln.prefill_chunk_size",
}

#: entries of optimum_overrides that vllm-rbln makes from vLLM's arguments, or that exclude those
_DERIVED = {
    "batch_size": "max_num_seqs",
    "max_seq_len": "max_model_len",
    "attn_impl": "block_size",
    "kvcache_block_size": "block_size",
    "kvcache_partition_len": "block_size",
    "prefill_chunk_size": "max_num_batched_tokens",
    "memory_budget": "gpu_memory_utilization",
    "kvcache_num_blocks": "num_gpu_blocks_override",
    "dtype": "dtype",
}


def engine_args(model: Model, device: Device, given: VllmArgs) -> dict[str, Any]:
    """Return the complete arguments for this path. Raises `PlanError` naming the key to change."""
    _check_parallel(given)
    for name in ("speculative_config", "spec_method", "spec_model", "spec_tokens"):
        if name in given.args:
            raise PlanError(f"{given.said(name)}: optimum-rbln's graphs cannot speculate; leave it out")
    for name in ("quantization", "kv_cache_dtype"):
        if given.args.get(name, "auto") != "auto":
            raise PlanError(f"{given.said(name)} changes nothing in optimum-rbln's graphs; leave it out")
    if given.options.get("num_devices_per_local_rank", device.count) != device.count:
        said = given.option("num_devices_per_local_rank")
        raise PlanError(f"{said}, but device.count={device.count}; set device.count alone")
    return _from_folder(model, given) if model.format == "rbln" else _from_weights(model, device, given)


def _check_parallel(given: VllmArgs) -> None:
    if (size := given.number("tensor_parallel_size", 1)) > 1:
        raise PlanError(
            f"{given.said('tensor_parallel_size')}: optimum-rbln itself spreads a model over NPUs "
            f"(--rbln-num-devices-per-local-rank), as many as device.count; leave it out and set device.count={size}"
        )
    if given.number("pipeline_parallel_size", 1) > 1:
        raise PlanError(
            f"{given.said('pipeline_parallel_size')}: optimum-rbln's graphs have no stages; leave it out, and use "
            "device.count for more NPUs"
        )
    if given.number("data_parallel_size", 1) > 1:
        raise PlanError(
            f"{given.said('data_parallel_size')}: every replica would use the same NPUs; leave it out, and start a "
            "deployment for each"
        )


def _from_folder(model: Model, given: VllmArgs) -> dict[str, Any]:
    """Return the arguments for a compiled folder, which fixes most, and silently overrides what is said again."""
    known = {"max_num_seqs": model.batch_size, "max_model_len": model.context_length, "dtype": model.dtype}
    for name, key in _FIXED.items():
        if name in given.args and given.args[name] != known.get(name):
            raise PlanError(f"{given.said(name)}: the compiled folder fixes it; leave it out, or compile with {key}")
    for name in given.options.get("optimum_overrides", {}):
        if name != "device":
            said = f"{given.key('additional_config')}.optimum_overrides.{name}"
            key = f"model.build.rbln.{name}"
            raise PlanError(f"{said}: the compiled folder fixes it; leave it out, or compile with {key}")
    rest = {name: value for name, value in given.args.items() if name not in (*_FIXED, "model_impl")}
    options = {name: value for name, value in given.options.items() if name != "num_devices_per_local_rank"}
    return {
        "model": model.path,
        **({"max_num_seqs": model.batch_size} if model.batch_size else {}),
        **rest,
        **({"additional_config": options} if options else {}),
    }


def _from_weights(model: Model, device: Device, given: VllmArgs) -> dict[str, Any]:
    limits = chip(device.product)
    length, said = given.length(model)
    seqs = given.number("max_num_seqs", model.batch_size or 1)
    _check_overrides(given)
    block = given.number("block_size", 1) if "block_size" in given.args else limits.block_size(length, said)
    _check_attention(limits, length, said, block, given)
    if model.task == "generate":  # some embedders read a text in chunks, some do not: the server checks
        _check_prefix_caching(block, _chunk(limits, length, seqs, given), said, given)
    return {
        "model": model.path,
        "dtype": model.dtype,
        "max_model_len": length,
        "block_size": block,
        "max_num_seqs": seqs,
        **({"runner": "pooling"} if model.task == "embed" else {}),
        **given.args,
        "model_impl": "optimum",  # rather than auto, which takes the other path for architectures that it lacks
        "additional_config": {**given.options, "num_devices_per_local_rank": device.count},
    }


def _check_overrides(given: VllmArgs) -> None:
    overrides = given.options.get("optimum_overrides", {})
    key = f"{given.key('additional_config')}.optimum_overrides"
    for name, value in overrides.items():
        if name in ("num_devices", "tensor_parallel_size"):
            raise PlanError(f"{key}.{name}={value!r}: set device.count instead")
        if name in _DERIVED:
            raise PlanError(f"{key}.{name}={value!r}: set {given.key(_DERIVED[name])} instead")
    if given.args.get("enable_lora") and "lora_config" not in overrides:
        raise PlanError(f"{given.said('enable_lora')}: adapters are compiled in; name them in {key}.lora_config")


def _check_attention(limits: Chip, length: int, said: str, block: int, given: VllmArgs) -> None:
    if block == length:
        if length > limits.max_eager:
            raise PlanError(
                f"{given.said('block_size')} is the whole context, which means eager attention, and that ends at "
                f"{limits.max_eager} on {limits.name}; leave it out"
            )
    elif length % block or length < 2 * block:
        raise PlanError(f"{given.said('block_size')}, but {said} is no multiple of it; leave it out")
    elif not limits.min_partition <= block <= limits.max_partition:
        raise PlanError(
            f"{given.said('block_size')}: flash attention on {limits.name} has blocks of {limits.min_partition} to "
            f"{limits.max_partition}; leave it out"
        )


def _chunk(limits: Chip, length: int, seqs: int, given: VllmArgs) -> int:
    """Return how many tokens of a prompt are read at a time."""
    if "max_num_batched_tokens" not in given.args:
        return limits.prefill_chunk
    chunk = given.number("max_num_batched_tokens", 1)
    if chunk % 64:
        raise PlanError(f"{given.said('max_num_batched_tokens')} is the prefill chunk; give a multiple of 64")
    least = max(seqs, length if given.args.get("enable_chunked_prefill") is False else 0)
    if chunk < least:
        raise PlanError(f"{given.said('max_num_batched_tokens')} is too little; give {least} or more, or leave it out")
    return chunk


def _check_prefix_caching(block: int, chunk: int, said: str, given: VllmArgs) -> None:
    if given.args.get("enable_prefix_caching") is False:
        return
    sub_block = given.options.get("sub_block_size", chunk)
    if sub_block % chunk:
        raise PlanError(f"{given.option('sub_block_size')}: give a multiple of the prefill chunk, {chunk}")
    if block % sub_block:
        what = given.said("block_size") if "block_size" in given.args else said
        raise PlanError(
            f"{what} is no multiple of the {sub_block} tokens that prefix caching goes by; change it, or set "
            f"{given.key('enable_prefix_caching')}=false"
        )
