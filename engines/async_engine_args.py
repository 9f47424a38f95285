"""vLLM's `AsyncEngineArgs` for a model on a device, whichever server they are given to: its own, Triton or TorchServe.

Rebellions' plugin has its own rules for them, in engines/rbln_vllm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from engines import rbln_vllm
from engines.base import Device, Model, PlanError

#: arguments that say over how many devices a model is spread; tensor parallelism takes what the others leave
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
#: shared library that vLLM's build for CPUs loads → Debian's package of it
CPU_LIBRARIES: Mapping[str, str] = {"libnuma.so.1": "libnuma1"}
#: bytes of the KV cache on a CPU; vLLM takes most of the machine when it is not told
KV_CACHE_BYTES = 1 << 30


def engine_args(
    model: Model, device: Device, wanted: Mapping[str, Any], keys: Mapping[str, str] | None = None, nodes: int = 1
) -> dict[str, Any]:
    """Return the complete arguments for serving `model` on `device` of each of `nodes` machines.

    `wanted` has those that the user set, and `keys` the config keys of those that are not set by `engine.args.<name>`.
    Raises `PlanError` naming the key to change.
    """
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if device.kind == "rbln":
        return rbln_vllm.engine_args(model, device, wanted, keys)
    defaults: dict[str, Any] = {"model": model.path, "dtype": model.dtype, "max_model_len": model.context_length}
    if model.task == "embed":
        defaults |= {"runner": "pooling", "convert": "embed"}
    if device.kind == "cpu":
        # Compiling wants a C++ compiler, and 100 s more at the first start, for a fifth more tokens.
        defaults |= {"kv_cache_memory_bytes": KV_CACHE_BYTES, "enforce_eager": True}
        _sizes(wanted, keys or {})
        return {**defaults, **wanted}
    return {**defaults, **_parallel(device, wanted, keys or {}, nodes), **wanted}


def device_count(wanted: Mapping[str, Any], nodes: int = 1) -> int | None:
    """Return how many devices of each machine the arguments ask for; None if they leave it open."""
    said = [name for name in PARALLEL if wanted.get(name) is not None]
    if not said:
        return None
    world = prod(_sizes(wanted, {}).values())
    if world % nodes:
        raise PlanError(
            f"{' × '.join(f'engine.{name}={wanted[name]}' for name in said)} makes {world} ranks, which "
            f"engine.nodes={nodes} machines cannot share equally; change one of them"
        )
    return world // nodes


def _parallel(device: Device, wanted: Mapping[str, Any], keys: Mapping[str, str], nodes: int) -> dict[str, Any]:
    """Return tensor parallelism over the devices that nothing else takes, and Ray if there are several machines."""
    sizes = _sizes(wanted, keys)
    world = nodes * device.count
    others = prod(size for name, size in sizes.items() if name != "tensor_parallel_size")
    tensor = sizes.get("tensor_parallel_size") or max(1, world // others)
    if tensor * others != world:
        said = " × ".join(f"{name.removesuffix('_parallel_size')} {size}" for name, size in sizes.items())
        raise PlanError(
            f"parallel sizes ({said}) make {tensor * others} ranks of one device each, but engine.nodes × device.count "
            f"is {nodes} × {device.count} = {world}; change one of them"
        )
    made: dict[str, Any] = {"tensor_parallel_size": tensor} if tensor > 1 else {}
    if nodes > 1:
        made["distributed_executor_backend"] = "ray"
        made |= {"data_parallel_backend": "ray"} if sizes.get("data_parallel_size", 1) > 1 else {}
    return made


def _sizes(wanted: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, int]:
    """Return the parallel sizes that are set."""
    sizes = {name: wanted[name] for name in PARALLEL if wanted.get(name) is not None}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PlanError(f"{keys.get(name, f'engine.args.{name}')}={value!r}: give a whole number from 1 up")
    return sizes
