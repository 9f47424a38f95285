"""vllm-rbln's vLLM path: vLLM's own model, compiled for REBEL as the server starts; each rank has one NPU."""

from __future__ import annotations

from typing import Any

from engines.base import Device, Model, PlanError
from engines.rbln_sdk import REBEL
from engines.rbln_vllm_args import VllmArgs


def engine_args(model: Model, device: Device, given: VllmArgs) -> dict[str, Any]:
    """Return the complete arguments for this path. Raises `PlanError` naming the key to change."""
    length, said = given.length(model)
    seqs = given.number("max_num_seqs", model.batch_size or 1)
    # Flash attention wherever it fits: the KV cache grows to what the device has only with it.
    chosen = None if "block_size" in given.args else REBEL.partition(length) or REBEL.block_size(length, said)
    block = chosen or given.number("block_size", 1)
    chunk = given.number("max_num_batched_tokens", min(REBEL.prefill_chunk, block))
    ranks = _ranks(device, given)
    _check_batch(seqs, chunk, given)
    _check_buckets(seqs // given.number("pipeline_parallel_size", 1), given)
    _check_dynamic_kv_cache(length, block, given)
    _check_sub_blocks(block, chunk, device, given)
    return {
        "model": model.path,
        "dtype": model.dtype,
        "max_model_len": length,
        "block_size": block,
        "max_num_batched_tokens": chunk,
        "max_num_seqs": seqs,
        **({"runner": "pooling"} if model.task == "embed" else {}),
        **given.args,
        "model_impl": "vllm",
        "tensor_parallel_size": ranks,
        **({"additional_config": dict(given.options)} if given.options else {}),
    }


def _ranks(device: Device, given: VllmArgs) -> int:
    """Return the tensor-parallel ranks: `device.count` divided by pipeline stages and replicas."""
    if given.options.get("num_devices_per_local_rank", 1) != 1:
        raise PlanError(f"{given.option('num_devices_per_local_rank')}: a rank is one REBEL; set device.count instead")
    others = given.number("pipeline_parallel_size", 1) * given.number("data_parallel_size", 1)
    ranks = given.number("tensor_parallel_size", max(1, device.count // others))
    if ranks * others != device.count:
        raise PlanError(
            f"device.count={device.count}, but the tensor, pipeline and data parallel sizes make {ranks * others} "
            f"ranks of one NPU each; set device.count={ranks * others}"
        )
    return ranks


def _check_batch(seqs: int, chunk: int, given: VllmArgs) -> None:
    if given.args.get("enable_chunked_prefill") is False:
        raise PlanError(f"{given.said('enable_chunked_prefill')}: vllm-rbln reads prompts in chunks; leave it out")
    if given.args.get("enable_lora"):
        raise PlanError(f"{given.said('enable_lora')}: vllm-rbln has no LoRA on this path; use model_impl=optimum")
    if (stages := given.number("pipeline_parallel_size", 1)) > seqs:
        raise PlanError(f"{given.said('pipeline_parallel_size')} needs {given.key('max_num_seqs')}={stages} or more")
    tokens, sequences = f"{given.key('max_num_batched_tokens')}={chunk}", f"{given.key('max_num_seqs')}={seqs}"
    if chunk < seqs:
        raise PlanError(f"{tokens} is below {sequences}; change one of them")
    if (replicas := given.number("data_parallel_size", 1)) > 1 and chunk % seqs:
        raise PlanError(f"{tokens} is no multiple of {sequences}, as data parallelism needs; change one of them")
    spread = replicas > 1 or given.args.get("enable_expert_parallel")
    if spread and given.options.get("use_moe_tokens_mask") is False:
        raise PlanError(f"{given.option('use_moe_tokens_mask')}: data and expert parallelism need it; leave it out")


def _check_buckets(largest: int, given: VllmArgs) -> None:
    """The sizes of batches that decoding is compiled for; `largest` is that of one pipeline stage."""
    strategy = given.options.get("decode_batch_bucket_strategy", "exponential")
    if strategy == "manual":
        buckets = given.options.get("decode_batch_bucket_manual_buckets", [])
        if largest != max(buckets, default=0):
            key = f"{given.key('additional_config')}.decode_batch_bucket_manual_buckets"
            raise PlanError(f"{key}={buckets!r}: the largest must be the batch of a pipeline stage, {largest}")
    elif given.options.get("decode_batch_bucket_min", 1) > largest:
        raise PlanError(f"{given.option('decode_batch_bucket_min')} is above the batch of a pipeline stage, {largest}")
    elif strategy == "exponential" and given.options.get("decode_batch_bucket_step", 2) == 1:
        raise PlanError(f"{given.option('decode_batch_bucket_step')}: exponential buckets need 2 or more")


def _check_dynamic_kv_cache(length: int, block: int, given: VllmArgs) -> None:
    if not given.options.get("use_dynamic_kv_cache"):
        return
    said = given.option("use_dynamic_kv_cache")
    if block == length:
        raise PlanError(f"{said} needs {given.key('block_size')} below the context length {length}")
    if given.options.get("use_custom_kernel"):
        raise PlanError(f"{said} excludes {given.option('use_custom_kernel')}; leave one out")


def _check_sub_blocks(block: int, chunk: int, device: Device, given: VllmArgs) -> None:
    if (sub_block := given.options.get("sub_block_size")) is None:
        return
    said = given.option("sub_block_size")
    if given.options.get("enable_sub_block_cache") is False or given.args.get("enable_prefix_caching") is False:
        raise PlanError(f"{said}, but prefix caching in sub-blocks is switched off; leave it out")
    if not sub_block <= chunk <= block or block == sub_block or block % sub_block:
        raise PlanError(
            f"{said} must divide {given.key('block_size')}={block} and be at most "
            f"{given.key('max_num_batched_tokens')}={chunk}, which must be at most the block size"
        )
    if sub_block != chunk and device.product not in (None, "RBLN-CR13"):
        raise PlanError(f"{said} below {given.key('max_num_batched_tokens')}={chunk} needs an RBLN-CR13; leave it out")
