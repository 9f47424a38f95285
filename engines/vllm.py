"""vLLM's OpenAI server: safetensors on CPU and GPU; on RBLN NPUs through Rebellions' plugin, vllm-rbln."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engines import async_engine_args, memory_use, rbln_vllm, vllm_command
from engines.base import (
    MISSING,
    Answer,
    Capabilities,
    Device,
    Endpoint,
    Endpoints,
    Engine,
    LaunchPlan,
    MemoryUse,
    Model,
    PlanError,
    Request,
    ServeSpec,
    Target,
)
from engines.openai_http import OpenAIClient, probes

#: variables that say where a Ray cluster is and how it is joined, and this machine's address in it
_CLUSTER = ("RAY_*", "VLLM_HOST_IP")


@dataclass
class VllmOptions:
    """The config keys of engine=vllm, named as vLLM names them; None leaves a choice to vLLM."""

    tensor_parallel_size: int | None = None  #: None is the number of devices
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    prefill_context_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    nodes: int = MISSING  #: machines, each with the devices of device.count; more than one are a Ray cluster
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
    lora: dict[str, str] = field(default_factory=dict)  #: name → folder of an adapter
    max_lora_rank: int | None = None
    speculative_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None  #: a file, or the template itself
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    served_names: list[str] = field(default_factory=list)  #: besides model.id
    trust_remote_code: bool | None = None
    enforce_eager: bool | None = None
    model_impl: str | None = None
    compile: str = MISSING  #: device=rbln: ahead (a build step), at_start (vllm-rbln itself), or auto


class Vllm(Engine):
    """The engine that runs `vllm serve`."""

    name: ClassVar[str] = "vllm"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={
            "cpu": {"generate": ("safetensors",), "embed": ("safetensors",)},
            "gpu": {"generate": ("safetensors",), "embed": ("safetensors",)},
            "rbln": {"generate": ("rbln", "safetensors"), "embed": ("safetensors", "rbln")},
        },
        api_key=True,
    )
    Options: ClassVar[type] = VllmOptions

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the server, with guard.py in front of it if a key is demanded."""
        (port,) = spec.ports
        http = Endpoint(spec.connect_host, port)
        return LaunchPlan.of(
            spec,
            argv=(*_program(spec), *vllm_command.flags(spec)),
            endpoints=Endpoints(http, metrics=f"{http.url}/metrics"),
            probes=probes(spec, ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")),
            env=_environment(spec),
            inherit=_CLUSTER if spec.options["nodes"] > 1 else (),
            files={f"server/{name}": spec.templates[name] for name in _files(spec)},
            reads=_read(spec),
            shm_size="8g",  # NCCL and the ranks' queues; Docker's own 64 MB end at the first of them
        )

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Ask through OpenAI's API."""
        return self._client.infer(target, request)

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def formats(self, kind: str, task: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the capabilities' formats; on RBLN `engine.compile` chooses a build step or vllm-rbln itself."""
        if kind != "rbln":
            return self.capabilities.formats[kind][task]
        when = options["compile"]
        if when not in ("auto", "ahead", "at_start"):
            raise PlanError(f"engine.compile={when!r} is not known; use auto, ahead or at_start")
        # The build step knows the settings of text models alone; vLLM's own models are compiled by vllm-rbln alone.
        ahead = when == "ahead" or (when == "auto" and task == "generate" and options["model_impl"] != "vllm")
        return ("rbln",) if ahead else ("safetensors", "rbln")

    def device_count(self, kind: str, options: Mapping[str, Any]) -> int | None:
        """Return the product of the parallel sizes, per machine; None on a CPU, or if none is set."""
        if kind == "rbln":
            return rbln_vllm.device_count({name: options[name] for name in async_engine_args.PARALLEL})
        return async_engine_args.device_count(options, options["nodes"]) if kind == "gpu" else None

    def memory(
        self, model: Model, device: Device, options: Mapping[str, Any], args: Mapping[str, Any]
    ) -> MemoryUse | None:
        """Return the use by device kind; engine.args count like options."""
        wanted = {name: value for name, value in {**options, **args}.items() if value is not None}
        if device.kind == "rbln":
            return memory_use.rbln(model, device, wanted)
        if device.kind == "cpu":
            return memory_use.vllm_cpu(model, wanted, async_engine_args.KV_CACHE_BYTES)
        return memory_use.vllm_gpu(model, device, wanted, options["nodes"])

    def system_libraries(self, key: str) -> Mapping[str, str]:
        """Return the libraries of vLLM's build for CPUs."""
        return async_engine_args.CPU_LIBRARIES if key == "cpu" else {}

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:
        """Return the device kind, or `gpu-ray` for several machines."""
        return "gpu-ray" if kind == "gpu" and options["nodes"] > 1 else kind


def _program(spec: ServeSpec) -> tuple[str, ...]:
    if spec.program:
        return (spec.program, "serve", spec.model.path)
    if spec.device.kind == "cpu":
        return (f"{spec.environment.bin}/python", f"{spec.run_dir}/server/serve.py", "--model", spec.model.path)
    return (f"{spec.environment.bin}/vllm", "serve", spec.model.path)


def _files(spec: ServeSpec) -> tuple[str, ...]:
    starter = ("serve.py",) if spec.device.kind == "cpu" and not spec.program else ()
    return (*starter, "guard.py") if spec.api_key else starter


def _read(spec: ServeSpec) -> list[str]:
    """Return the user's files and folders that the server reads besides the model."""
    draft = spec.options["speculative_config"].get("model")
    named = (*spec.options["lora"].values(), spec.options["chat_template"], draft)
    return [path for path in named if path and path.startswith("/") and "\n" not in path]


def _environment(spec: ServeSpec) -> Mapping[str, str]:
    env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }  # everything was fetched before the launch
    if spec.api_key:
        # The folder of guard.py, which `vllm serve` would not look into.
        env |= {"VLLM_API_KEY": spec.api_key, "PYTHONPATH": f"{spec.run_dir}/server"}
    if spec.device.kind == "cpu" and _shares_a_process(spec):
        # Without a process for its worker, vLLM is ready in 20 s and not 32 here, and takes 0.7 GB less.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if spec.device.kind == "rbln":
        env |= rbln_vllm.environment(spec.device, spec.environment.requirements)
    return env


def _shares_a_process(spec: ServeSpec) -> bool:
    """Return whether the engine's worker runs in the server's own process, on a CPU.

    serve.py then says how many threads there are. Several ranks, or the user's own placing of threads or ranks, exclude
    it.
    """
    sizes = (spec.options[name] or 1 for name in async_engine_args.PARALLEL)
    placed = {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU"} & spec.env.keys()
    return not (spec.program or placed or max(sizes) > 1 or vllm_command.said(spec, "distributed_executor_backend"))
