"""vLLM-RBLN 0.12: the engine arguments that it takes on Rebellions' NPUs, with its rules checked while planning.

The plugin has two model paths. `optimum` runs graphs that optimum-rbln compiled, beforehand or as the server starts:
all that ATOM can do. `vllm` compiles vLLM's own model, on REBEL alone. A plan does not know the architecture of a
model, so the server checks all that depends on it: whether optimum-rbln has it, heads that tensor parallelism must
divide, how long its context may be, and that prefix caching is off for models with sliding windows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from engines import rbln_sdk, rbln_vllm_native, rbln_vllm_optimum
from engines.base import Device, Model, PlanError
from engines.rbln_vllm_args import VllmArgs

_PATHS = {"auto": "optimum", "optimum": "optimum", "transformers": "optimum", "vllm": "vllm"}

_ELSEWHERE = {
    "model": "set model.source",
    "device": "vLLM 0.30 has no such argument, and finds the NPUs by itself; leave it out",
    "device_ids": "vllm-rbln does not go by it; set device.ids",
}


def engine_args(
    model: Model, device: Device, wanted: Mapping[str, Any], keys: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the complete `AsyncEngineArgs` for serving `model` on `device`; `wanted` has those that the user set.

    `keys` has the config keys of arguments that are not set by `engine.args.<name>`. Of a compiled folder (format
    rbln), only what the model itself says is known: that it was compiled for as many NPUs, of this kind, with this
    release, and for LoRA if that is wanted, is left to the server. Raises `PlanError` naming the key to change.
    """
    args = {name: value for name, value in wanted.items() if value is not None and name != "additional_config"}
    given = VllmArgs(args, keys or {})
    for name, instead in _ELSEWHERE.items():
        if name in args:
            raise PlanError(f"{given.said(name)}: {instead}")
    path = _path(given, model, device)
    given = given.with_options(wanted.get("additional_config") or {}, path)
    if path == "vllm":
        return rbln_vllm_native.engine_args(model, device, given)
    return rbln_vllm_optimum.engine_args(model, device, given)


def flags(additional_config: Mapping[str, Any]) -> list[str]:
    """Return `additional_config` as flags of `vllm serve`; a list takes all words that follow it, so they come last."""
    words: list[str] = []
    for name, value in additional_config.items():
        flag = f"--rbln-{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [flag, json.dumps(value)]
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def environment(device: Device, requirements: Sequence[str] = ()) -> dict[str, str]:
    """Return the server's variables besides those of the device, for the SDK that `requirements` pin.

    RBLN_FORCE_NPU_NAME is not among them: it names the chip where none is mounted, and a server needs one.
    """
    sdk = rbln_sdk.sdk(requirements)
    variables = {"VLLM_USE_V2_MODEL_RUNNER": "0"}  # vllm-rbln 0.12 refuses the other one
    shown = device.env.get(rbln_sdk.NEWEST.visible_devices)
    if shown is not None and sdk.visible_devices not in device.env:
        variables[sdk.visible_devices] = shown  # the same value under both names: they must never differ
    if sdk.devices_per_rank:
        variables[sdk.devices_per_rank] = str(device.count)
    return variables


def device_count(wanted: Mapping[str, Any]) -> int | None:
    """Return how many NPUs the arguments ask for; None if they leave it open."""
    options = wanted.get("additional_config") or {}
    said = [wanted.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data")]
    said.append(options.get("num_devices_per_local_rank"))
    numbers = [value for value in said if isinstance(value, int)]
    return prod(numbers) if numbers else None


def _path(given: VllmArgs, model: Model, device: Device) -> str:
    named = str(given.args.get("model_impl", "auto"))
    if named not in _PATHS:
        raise PlanError(f"{given.said('model_impl')} is not known to vllm-rbln; use auto, optimum or vllm")
    if _PATHS[named] == "vllm":
        if (device.product or "").startswith(rbln_sdk.ATOM.prefix):
            raise PlanError(f"{given.said('model_impl')} needs a REBEL, and {device.product} is an ATOM; use optimum")
        if model.format == "rbln":
            raise PlanError(f"{given.said('model_impl')} cannot serve what optimum-rbln compiled; use optimum")
    return _PATHS[named]
