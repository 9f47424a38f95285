"""Furiosa-LLM on FuriosaAI's RNGD: `furiosa-llm serve`, and `fxb build`, which compiles the model for it.

Nobody has run this against an NPU. The flags are those of the wheel's own parsers, which a test runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any, ClassVar

from engines.base import (
    OUTPUT,
    BuildProfile,
    BuildStep,
    Capabilities,
    Chunk,
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
    Vector,
)
from engines.openai_http import OpenAIClient, probes

VERSION = "2026.4.0"
ELEMENTS = 8  #: processing elements of one RNGD; tensor parallelism counts them
#: flags of `furiosa-llm serve` that engine.args may hold, with a value
VALUES = frozenset([
    "allowed_local_media_path", "allowed_media_domains", "allowed_origins", "batch_scheduling_budget_ms",
    "chat_template_content_format", "data_parallel_routing_policy", "data_parallel_scoring_profile",
    "default_chat_template_kwargs", "experimental_kv_offload_host_memory_gb",
    "experimental_kv_offload_host_memory_ratio", "experimental_kv_offload_staging_memory_gb",
    "experimental_kv_offload_write_through_threshold", "experimental_kv_transfer_config",
    "experimental_speculative_config", "image_limit_per_prompt", "max_io_memory_mb", "max_processing_samples",
    "media_io_kwargs", "mm_processor_cache_gb", "mm_processor_kwargs", "npu_queue_limit",
    "prefix_cache_lookahead_requests", "response_role", "responses_api_store_max_entries", "responses_api_store_ttl",
    "structured_outputs_backend", "uvicorn_log_level", "video_limit_per_prompt",
])  # fmt: skip
#: flags without a value
SWITCHES = frozenset([
    "disable_log_stats", "enable_payload_logging", "enable_responses_api_store", "experimental_aggressive_batching",
    "experimental_enable_npu_sampling", "experimental_kv_offload_overlap_l2_reload",
    "experimental_kv_offload_write_back", "interleave_mm_strings",
])  # fmt: skip
#: flags that have a --no- beside them
TOGGLES = frozenset(["disable_uvicorn_access_log", "enable_overlap_scheduling", "profile_guided_decode_batching"])
#: the engine's own keys that are flags by the same name
OPTIONS = (
    "pipeline_parallel_size", "data_parallel_size", "max_model_len", "max_num_batched_tokens", "max_concurrency",
    "enable_prefix_caching", "chat_template", "tool_call_parser", "reasoning_parser", "scheduler_kind",
)  # fmt: skip
#: flag that something else decides → what to set instead
OURS = {
    "api_key": "api_key", "devices": "device.ids", "enable_auto_tool_choice": "engine.tool_call_parser",
    "fxb": "engine.fxb", "host": "host", "port": "port", "revision": "model.source", "served_model_name": "model.id",
    "tensor_parallel_size": "engine.tensor_parallel_size, because it is fixed when the model is compiled",
    **{name: f"engine.{name}" for name in OPTIONS},
}  # fmt: skip


@dataclass
class FuriosaOptions:
    """The config keys of engine=furiosa; None leaves a choice to furiosa-llm."""

    fxb: str | None = None  #: a bundle of the user's own, compiled for this model; None compiles one
    tensor_parallel_size: int | None = None  #: processing elements, 8 to a card; fixed when the model is compiled
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    max_model_len: int | None = None  #: at most the length that the model was compiled for
    max_num_batched_tokens: int | None = None
    max_concurrency: int | None = None
    enable_prefix_caching: bool | None = None
    chat_template: str | None = None  #: a file
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    scheduler_kind: str | None = None
    optim_level: str | None = None  #: the compiler's: O0 to O3
    build_concurrency: int | None = None  #: kernels that are compiled at the same time


class Furiosa(Engine):
    """The engine that runs `furiosa-llm serve`."""

    name: ClassVar[str] = "furiosa"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={"furiosa": {"generate": ("safetensors",), "embed": ("safetensors",)}},
        api_key=True,
    )
    Options: ClassVar[type] = FuriosaOptions

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def device_count(self, kind: str, options: Mapping[str, Any]) -> int | None:  # noqa: ARG002
        """Return how many cards hold the processing elements of the parallel sizes; None if no size is set."""
        elements, *copies = (options.get(f"{name}_parallel_size") for name in ("tensor", "pipeline", "data"))
        if elements is None and copies == [None, None]:
            return None
        wanted: int = (elements or ELEMENTS) * prod(copy or 1 for copy in copies)
        return max(1, -(-wanted // ELEMENTS))

    def memory(
        self,
        model: Model,
        device: Device,  # noqa: ARG002
        options: Mapping[str, Any],
        args: Mapping[str, Any],  # noqa: ARG002
    ) -> MemoryUse | None:
        """Return the least that the memory can be: the vendor publishes nothing of what else it takes."""
        stages = options["pipeline_parallel_size"] or 1
        return MemoryUse(
            model.context_length,
            sequences=0 if model.task == "embed" else 1,
            weights_dtype=model.dtype,
            kv_dtype=model.dtype,
            spread="any" if stages > 1 else "",
            replicas=options["data_parallel_size"] or 1,
        )

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the server, and a build step for the bundle unless `engine.fxb` names one."""
        (port,) = spec.ports
        http = Endpoint(spec.connect_host, port)
        builds = [] if spec.options["fxb"] else [_build(spec)]
        bundle = spec.options["fxb"] or f"{builds[0].output}/model.fxb"
        argv = [spec.program or f"{spec.environment.bin}/furiosa-llm", "serve"]
        files, env = {}, {"HF_HUB_OFFLINE": "1"}
        if spec.api_key:
            if spec.program:
                raise PlanError("api_key needs the Python of furiosa-llm, which engine.program hides; leave one out")
            argv = [f"{spec.environment.bin}/python", f"{spec.run_dir}/serve.py"]
            files["serve.py"] = spec.templates["serve.py"]
            env["FURIOSA_LLM_API_KEY"] = spec.api_key
        argv += [spec.model.path, "--fxb", bundle, "--served-model-name", spec.model.id]
        argv += ["--host", spec.bind, "--port", str(port)]
        # Always: without it the server takes every NPU that nobody uses at that moment.
        argv += ["--devices", ",".join(f"npu:{number}" for number in spec.device.ids)]
        chosen = {name: spec.options[name] for name in OPTIONS}
        argv += _flags({**chosen, "enable_auto_tool_choice": bool(chosen["tool_call_parser"]) or None})
        argv += _flags(_checked(spec.args))
        return LaunchPlan.of(
            spec,
            argv=argv,
            endpoints=Endpoints(http, metrics=f"{http.url}/metrics"),
            probes=probes(spec),
            env=env,
            files=files,
            builds=(*spec.builds, *builds),
            reads=[path for path in (spec.options["fxb"], spec.options["chat_template"]) if path],
        )

    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        """Ask through OpenAI's API."""
        return self._client.infer(target, request)

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


def _build(spec: ServeSpec) -> BuildStep:
    """Return the step that runs `fxb build` of the same packages that serve: another release's bundle may not load."""
    options = spec.options
    settings = {
        "tensor_parallel_size": options["tensor_parallel_size"],
        "pipeline_parallel_size": options["pipeline_parallel_size"],
        "max_model_len": spec.model.context_length,
        "optim_level": options["optim_level"],
        "convert": "embed" if spec.model.task == "embed" else None,
    }
    environment = spec.builder
    profile = BuildProfile(
        target=spec.device.product or "furiosa",
        compiler="fxb",
        compiler_version=environment.version,
        flags=settings,
        interface="fxb",
    )
    argv = [f"{environment.bin}/fxb", "build", spec.model.path, f"{OUTPUT}/model.fxb", *_flags(settings)]
    return BuildStep(
        name="safetensors-to-fxb",
        argv=(*argv, *_flags({"concurrency": options["build_concurrency"]})),
        output=profile.place(spec.artifacts, spec.model.id, spec.model.identity),
        environment=environment,
        env={"HF_HUB_OFFLINE": "1"},
        model_id=spec.model.id,
        profile=profile,
    )


def _checked(args: Mapping[str, Any]) -> Mapping[str, Any]:
    known = VALUES | SWITCHES | TOGGLES
    for key, value in args.items():
        if key in OURS:
            raise PlanError(f"engine.args.{key}: use {OURS[key]}")
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}"
            raise PlanError(f"engine.args.{key}: furiosa-llm serve {VERSION} has no such flag; {hint}")
        if value is not None and isinstance(value, bool) == (key in VALUES):
            wanted = "a value" if key in VALUES else "true or false"
            raise PlanError(f"engine.args.{key}={value!r}: this flag takes {wanted}")
    return args


def _flags(args: Mapping[str, Any]) -> list[str]:
    """Return flags: `{"max_concurrency": 4, "enable_x": False}` is `["--max-concurrency", "4", "--no-enable-x"]`."""
    flags: list[str] = []
    for key, value in args.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags += [f"--{name}"] if value else [] if key in SWITCHES else [f"--no-{name}"]
        elif key == "allowed_media_domains" and isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, (Mapping, list)) else str(value)]
    return flags
