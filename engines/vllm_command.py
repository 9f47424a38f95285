"""The flags behind `vllm serve MODEL`: from config keys, and from engine.args, some of which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines import rbln_vllm, vllm_flags
from engines.async_engine_args import PARALLEL, engine_args
from engines.base import PlanError, ServeSpec

#: flag that another key decides → that key
_OURS = {
    "model": "model.source",
    "model_tag": "model.source",
    "host": "host",
    "port": "port",
    "api_key": "api_key",
    "served_model_name": "engine.served_names",
    "runner": "model.task",
    "lora_modules": "engine.lora",
    **{name: f"engine.{name}" for name in PARALLEL},  # they decide how many devices are taken
}
#: flag that would make the server another than the one that is probed and asked → the reason
_REFUSED = {
    "config": "what is in that file would not be checked, and config keys say the same",
    "grpc": "the launcher asks it over HTTP",
    "headless": "the launcher asks it over HTTP",
    "ssl_certfile": "the launcher asks it over plain HTTP",
    "ssl_keyfile": "the launcher asks it over plain HTTP",
    "uds": "the launcher asks it over a port",
}
#: options that are engine arguments of the same name
_ENGINE = (
    *PARALLEL, "enable_expert_parallel", "dtype", "quantization", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_dtype", "enable_prefix_caching",
    "enable_chunked_prefill", "block_size", "max_lora_rank", "speculative_config", "reasoning_parser",
    "trust_remote_code", "enforce_eager", "model_impl",
)  # fmt: skip
_GUARD = "guard.RequireKey"
#: seconds from the last answer to the end of the process; measured: 2 to 3
_TEARDOWN_S = 4


def flags(spec: ServeSpec) -> list[str]:
    """Return the words after the model. Raises `PlanError` naming the config key to change."""
    known = _known(spec)
    options = {name: spec.options[name] for name in _ENGINE if spec.options[name] not in (None, {})}
    if spec.options["lora"]:
        options["enable_lora"] = True
    args = _args(spec, options)
    keys = {name: "engine.lora" if name == "enable_lora" else f"engine.{name}" for name in options}
    engine = _engine_args(spec, {**options, **args}, keys)
    plugin = engine.pop("additional_config", {}) if spec.device.kind == "rbln" else {}
    chosen = {**_server(spec, args, known), **engine}
    if spec.api_key:
        chosen["middleware"] = [*_listed(args.get("middleware")), _GUARD]  # the last one is asked first
    for name, value in chosen.items():
        if known and value is not None:
            known.check(f"engine.args.{name}" if name in args else f"engine.{name}", name, value)
    return [*vllm_flags.words(chosen, known), *rbln_vllm.flags(plugin)]


def said(spec: ServeSpec, name: str) -> Any:
    """Return the value that engine.args gives a flag, however it is spelt there; None if it gives none."""
    return _named(spec.args).get(name)


def _named(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in args.items()}


def _args(spec: ServeSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return engine.args. Raises `PlanError` for flags that other keys decide."""
    args = _named(spec.args)
    for name, value in args.items():
        # vllm-rbln's own rules say what to do about these.
        if name in _OURS and not (spec.device.kind == "rbln" and name in PARALLEL):
            raise PlanError(f"engine.args.{name}={value!r}: set {_OURS[name]} instead")
        if name in _REFUSED:
            raise PlanError(f"engine.args.{name}={value!r}: {_REFUSED[name]}; leave it out")
        if options.get(name, value) != value:
            raise PlanError(f"engine.args.{name}={value!r}, but engine.{name}={options[name]!r}; leave one of them out")
    return _with_plugin(args) if spec.device.kind == "rbln" else args


def _with_plugin(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return `args` with vllm-rbln's own flags inside additional_config, so that its rules see them."""
    flags = {name.removeprefix("rbln_"): value for name, value in args.items() if name.startswith("rbln_")}
    rest = {name: value for name, value in args.items() if not name.startswith("rbln_")}
    return {**rest, "additional_config": {**rest.get("additional_config", {}), **flags}} if flags else rest


def _server(spec: ServeSpec, args: Mapping[str, Any], known: vllm_flags.Flags | None) -> dict[str, Any]:
    """Return the flags of the HTTP server in front of the engine."""
    options = spec.options
    # Without time to shut down, requests that are being answered end with the signal.
    drains = known is not None and known.find("shutdown_timeout") is not None
    server: dict[str, Any] = {
        "host": spec.bind,
        "port": spec.ports[0],
        "served_model_name": [spec.model.id, *options["served_names"]],
        "shutdown_timeout": max(0, int(spec.stop_grace_s - _TEARDOWN_S)) if drains else None,
        "chat_template": options["chat_template"],
        "tool_call_parser": options["tool_call_parser"],
        "lora_modules": [f"{name}={folder}" for name, folder in options["lora"].items()],
    }
    if options["tool_call_parser"]:
        server["enable_auto_tool_choice"] = True
    return {name: value for name, value in server.items() if value and name not in args}


def _engine_args(spec: ServeSpec, wanted: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    args = engine_args(spec.model, spec.device, wanted, keys, spec.options["nodes"])
    del args["model"]  # the first word of the line
    return args


def _known(spec: ServeSpec) -> vllm_flags.Flags | None:
    """Return the flags of the pinned vLLM; None for a vLLM of the user's.

    Its version is unknown, so its own parser has to refuse what it does not have.
    """
    if spec.program or not spec.environment.managed:
        return None
    known = vllm_flags.of(spec.environment.requirements, spec.templates)
    if known is None:
        pins = ", ".join(spec.environment.requirements)
        raise PlanError(
            f"the flags of the vLLM in {pins} are not known; use a version of templates/vllm, or your own vLLM"
        )
    return known


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
