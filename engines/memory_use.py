"""The memory that the parts of engines take: measured here, or published, as each line says.

Sources and errors: docs/fit.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.base import Device, MemoryUse, Model
from engines.rbln_sdk import REBEL

GIB, MIB = 1 << 30, 1 << 20

#: bytes that each server's processes take besides the model, measured on a CPU by benchmarks/fit.py
TORCH_CPU_BYTES = 500 * MIB
TRITON_CPU_BYTES = 500 * MIB
TORCHSERVE_CPU_BYTES = 650 * MIB
VLLM_CPU_BYTES = 1500 * MIB
LLAMA_CPU_BYTES = 100 * MIB
#: CUDA's context and the kernels that are loaded into it, on each GPU; not measured here: vLLM's reports have 0.1 to
#: 1.8 GiB (vllm-project/vllm pull requests 10511 and 14447)
CUDA_BYTES = 600 * MIB
#: NCCL's and the custom all-reduce's buffers where GPUs work together; the same source: 1.8 GiB more with two H100
NCCL_BYTES = 600 * MIB
#: an NPU's command streams and buffers; not published, and not measured
RBLN_BYTES = 512 * MIB

#: copies of the logits while vLLM samples; chosen to match its report for Llama 3 8B (pull request 10511)
_SAMPLED = 3


def vllm_gpu(model: Model, device: Device, args: Mapping[str, Any], nodes: int = 1) -> MemoryUse:
    """The memory use of vLLM on GPUs; `args` are the `AsyncEngineArgs` that are set.

    vLLM measures the memory of a largest batch, and makes a KV cache of the rest of what it may use, which must hold
    one sequence of full length (vllm/v1/core/kv_cache_utils.py of 0.32).
    """
    args = {name: value for name, value in args.items() if value is not None}
    sizes = {name: _whole(args.get(f"{name}_parallel_size"), 1) for name in ("pipeline", "data")}
    quantization = str(args.get("quantization", ""))
    return MemoryUse(
        context_length=_whole(args.get("max_model_len"), model.context_length),
        context_key="engine.max_model_len" if "max_model_len" in args else "model.context_length",
        sequences=0 if model.task == "embed" else 1,
        weights_dtype={"fp8": "float8", "bitsandbytes": "int4"}.get(quantization, _dtype(args, model)),
        kv_dtype="float8" if str(args.get("kv_cache_dtype", "")).startswith("fp8") else _dtype(args, model),
        spread="heads",
        replicas=sizes["data"],
        stages=sizes["pipeline"],
        nodes=nodes,
        usable=float(args.get("gpu_memory_utilization", 0.92)),  # vllm/config/cache.py of 0.32
        usable_key="engine.gpu_memory_utilization",
        overhead_bytes=CUDA_BYTES,
        link_bytes=NCCL_BYTES,
        tokens_at_once=_whole(args.get("max_num_batched_tokens"), _batched_tokens(device)),
        logits_at_once=_SAMPLED * min(256, _whole(args.get("max_num_seqs"), 256)),
    )


def vllm_cpu(model: Model, args: Mapping[str, Any], pool_bytes: int) -> MemoryUse:
    """The memory use of vLLM on a processor: its KV cache has a set size, and must hold one sequence of full length."""
    return MemoryUse(
        context_length=_whole(args.get("max_model_len"), model.context_length),
        context_key="engine.max_model_len" if args.get("max_model_len") else "model.context_length",
        sequences=0 if model.task == "embed" else 1,
        weights_dtype=_dtype(args, model),
        kv_dtype=_dtype(args, model),
        kv_pool_bytes=_whole(args.get("kv_cache_memory_bytes"), pool_bytes),
        kv_pool_key="engine.args.kv_cache_memory_bytes",
        overhead_bytes=VLLM_CPU_BYTES,
        tokens_at_once=_whole(args.get("max_num_batched_tokens"), 2048),  # vllm/engine/arg_utils.py of 0.32
        logits_at_once=_SAMPLED * _whole(args.get("max_num_seqs"), 128),
    )


def rbln(model: Model, device: Device, args: Mapping[str, Any]) -> MemoryUse:
    """The memory use of a model that optimum-rbln compiled: its cache holds the whole batch, at full length.

    The reserves are those of optimum-rbln 0.12 (utils/runtime_utils.py).
    """
    chiplets = (device.product or "").startswith(REBEL.prefix)
    return MemoryUse(
        context_length=_whole(args.get("max_model_len"), model.context_length),
        context_key="engine.max_model_len" if args.get("max_model_len") else "model.context_length",
        sequences=0 if model.task == "embed" else _whole(args.get("max_num_seqs"), model.batch_size or 1),
        weights_dtype=model.dtype,
        kv_dtype=model.dtype,
        spread="any",
        reserved_bytes=4 * GIB if chiplets else 288 * MIB,
        overhead_bytes=RBLN_BYTES,
        tokens_at_once=512 if chiplets else 128,
    )


def llama_cpp(model: Model, device: Device, args: Mapping[str, Any]) -> MemoryUse:
    """The memory use of llama.cpp: weights as stored in the file, and one cache of the whole context for all requests.

    Its compute buffer has logits for a whole batch (llama-context.cpp: graph_reserve).
    """
    batch = _whole(args.get("ubatch_size"), 512)
    return MemoryUse(
        context_length=_whole(args.get("ctx_size"), model.context_length),
        context_key="engine.args.ctx_size" if args.get("ctx_size") else "model.context_length",
        as_stored=True,
        kv_dtype=str(args.get("cache_type_k") or "f16"),
        spread="layers",
        overhead_bytes=LLAMA_CPU_BYTES if device.kind == "cpu" else CUDA_BYTES,
        tokens_at_once=batch,
        logits_at_once=batch,
    )


def transformers_model(
    model: Model, device: Device, *, sequences: int, copies: int = 1, cpu_bytes: int = TORCH_CPU_BYTES, **more: Any
) -> MemoryUse:
    """The memory use of a model in a Python process of ours, or of Transformers' server."""
    return MemoryUse(
        context_length=model.context_length,
        sequences=sequences if model.task == "generate" else 0,
        weights_dtype=model.dtype,
        kv_dtype=model.dtype,
        copies=copies,
        overhead_bytes=cpu_bytes if device.kind == "cpu" else CUDA_BYTES,
        **more,
    )


def _batched_tokens(device: Device) -> int:
    """The default of vLLM's server by the memory of the GPU, in tokens (vllm/engine/arg_utils.py of 0.32)."""
    memory = device.memory_bytes or 0
    if memory >= 160 * GIB:
        return 16384
    return 8192 if memory >= 70 * GIB and "A100" not in (device.product or "").upper() else 2048


def _dtype(args: Mapping[str, Any], model: Model) -> str:
    asked = str(args.get("dtype", "auto"))
    return {"auto": model.dtype, "half": "float16", "float": "float32"}.get(asked, asked)


def _whole(value: Any, default: int) -> int:
    """Return `value` if it is a whole number above 0, else `default`; whoever reads a bad value refuses it later."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
