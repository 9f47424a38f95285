"""Hugging Face Transformers' own server, `transformers serve`: safetensors models on CPU or GPU, one at a time.

templates/transformers/serve.py starts the server, and mends what it leaves undone. Its API is OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from engines import memory_use
from engines.base import (
    MISSING,
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

#: the flags of `transformers serve` that engine.args may hold; tests compare them with the server's own
VERSION = "5.23.0"
FLAGS = frozenset([
    "attn_implementation", "cb_block_size", "cb_max_batch_tokens", "cb_max_memory_percent", "cb_num_blocks",
    "cb_use_cuda_graph", "chat_template_kwargs", "compile", "decision_config", "default_seed", "enable_cors",
    "log_level", "quantization", "reasoning", "trust_remote_code",
])  # fmt: skip
#: flag that something else decides → what to set instead
OURS = {
    "continuous_batching": "engine.continuous_batching",
    "device": "device=",
    "dtype": "model.dtype",
    "host": "host",
    "port": "port",
    "model_timeout": "nothing: the model stays loaded",
}
_TOKENS_OF_A_BLOCK = 256
_CONTEXTS_ON_CPU = 8  #: contexts that the cache holds; the server's own default is six tenths of the machine's memory


@dataclass
class TransformersOptions:
    """The config keys of engine=transformers."""

    continuous_batching: bool = MISSING  #: decode requests together; greedily, and on a GPU with paged attention


class Transformers(Engine):
    """The engine that runs `transformers serve`."""

    name: ClassVar[str] = "transformers"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={kind: {"generate": ("safetensors",)} for kind in ("cpu", "gpu")},
        api_key=True,
    )
    Options: ClassVar[type] = TransformersOptions

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the server; the model is a link, `weights`, below the run folder."""
        if spec.program:
            raise PlanError(
                f"engine.program={spec.program!r}: engine=transformers is started by a Python; set engine.environment "
                "to the one that has transformers"
            )
        (port,) = spec.ports
        batching = bool(spec.options["continuous_batching"])
        argv = [f"{spec.environment.bin}/python", f"{spec.run_dir}/server/serve.py"]
        argv += ["--served-model-name", spec.model.id, "--max-context", str(spec.model.context_length)]
        # Whoever is still being answered then is cut off, in order, before the KILL.
        argv += ["--drain-s", str(max(1, int(spec.stop_grace_s) - 2))]
        # The link, because the server takes an @ in a path for the start of a revision.
        argv += ["weights", "--host", spec.bind, "--port", str(port)]
        argv += ["--device", _device(spec), "--dtype", spec.model.dtype]
        argv += ["--continuous-batching"] if batching else []
        argv += _flags({**_batching_defaults(spec, batching), **_checked(spec.args, batching)})
        env = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # everything was fetched before the launch
        if spec.device.kind == "cpu":
            # OpenMP's threads wait for each other by spinning; where other programs run too, that made decoding ten
            # to thirty times as slow.
            env["OMP_WAIT_POLICY"] = "PASSIVE"
        if spec.api_key:
            env["TRANSFORMERS_SERVE_API_KEY"] = spec.api_key
        return LaunchPlan.of(
            spec,
            argv=argv,
            endpoints=Endpoints(Endpoint(spec.connect_host, port)),
            probes=probes(spec),
            env=env,
            # Their own folder is all that Python puts before its packages.
            files={f"server/{name}": spec.templates[name] for name in ("serve.py", "decoding.py", "bad_request.py")},
            links={"weights": spec.model.path},
        )

    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        """Ask through OpenAI's API."""
        return self._client.infer(target, request)

    def memory(
        self, model: Model, device: Device, options: Mapping[str, Any], args: Mapping[str, Any]
    ) -> MemoryUse | None:
        """Return the use of one copy of the model; None if the cache's size depends on the machine or the user."""
        batching = bool(options["continuous_batching"])
        if batching and _sized_by_user(device.kind, args):
            return None
        return memory_use.transformers_model(
            model,
            device,
            sequences=_CONTEXTS_ON_CPU if batching and device.kind == "cpu" else 1,
            spread="layers",
            tokens_at_once=model.context_length,  # the server reads a prompt in one step
        )

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


def _device(spec: ServeSpec) -> str:
    if spec.device.kind == "cpu":
        return "cpu"
    return "cuda:0" if spec.device.count == 1 else "auto"  # auto lays the layers over all that it sees


def _batching_defaults(spec: ServeSpec, batching: bool) -> dict[str, Any]:
    if not batching or spec.device.kind != "cpu" or spec.args.get("cb_max_memory_percent") is not None:
        return {}
    blocks = -(-spec.model.context_length // _TOKENS_OF_A_BLOCK)
    return {"cb_num_blocks": _CONTEXTS_ON_CPU * blocks, "cb_max_batch_tokens": max(512, spec.model.context_length)}


def _sized_by_user(kind: str, args: Mapping[str, Any]) -> bool:
    return kind != "cpu" or any(args.get(name) is not None for name in ("cb_max_memory_percent", "cb_num_blocks"))


def _checked(args: Mapping[str, Any], batching: bool) -> Mapping[str, Any]:
    for key in args:
        if key in OURS:
            raise PlanError(f"engine.args.{key}: this flag is set by {OURS[key]}; leave it out")
        if key not in FLAGS:
            near = get_close_matches(key, FLAGS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(FLAGS))}"
            raise PlanError(f"engine.args.{key}: transformers serve {VERSION} has no such flag; {hint}")
        if key.startswith("cb_") and args[key] is not None and not batching:
            raise PlanError(f"engine.args.{key} needs engine.continuous_batching=true")
    return args


def _flags(args: Mapping[str, Any]) -> list[str]:
    """Return the flags: `{"compile": True, "cb_num_blocks": 64}` is `["--compile", "--cb-num-blocks", "64"]`."""
    flags: list[str] = []
    for key, value in args.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, (Mapping, list)) else str(value)]
    return flags
