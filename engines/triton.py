"""NVIDIA Triton Inference Server: text, embeddings and tensors in its Python backend, text in its vLLM backend too.

Tensor names of text are those of Triton's own vLLM backend (text_input, stream, sampling_parameters, text_output), so
that clients need not know which of the two serves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from engines import backends, memory_use, rbln_vllm
from engines.base import (
    MISSING,
    Answer,
    Capabilities,
    Device,
    Dialect,
    Endpoint,
    Endpoints,
    Engine,
    HttpCheck,
    LaunchPlan,
    MemoryUse,
    Model,
    PlanError,
    Probes,
    Request,
    ServeSpec,
    Target,
    TensorSpec,
)
from engines.triton_client import TritonClient
from engines.triton_openai import TritonOpenAI
from engines.triton_repository import python_model, vllm_model
from engines.triton_tensors import DATATYPES

#: the server's program in NVIDIA's container
_SERVER = "tritonserver"

#: numbers in the readiness request; more would only make plans long
_MOST_ZEROS = 4096


@dataclass
class Options:
    """The config keys of engine=triton."""

    backend: str = MISSING  #: auto, python or vllm
    protocol: str = MISSING  #: the client's protocol: grpc or http
    #: requests that are computed at the same time (backend=python): None is 2 for text, by threads that share the
    #: model, and 1 for embeddings and tensors, where each needs a copy of it
    workers: int | None = None
    handler: str | None = None  #: a model.py of the user's own in place of the one in templates/triton
    max_num_seqs: int | None = None  #: sequences in a batch (backend=vllm)
    backend_directory: str | None = (
        None  #: the folder in which tritonserver finds its backends; None is ours or the server's own
    )


class Triton(Engine):
    """The engine that runs tritonserver on a repository of one model."""

    name: ClassVar[str] = "triton"
    capabilities: ClassVar[Capabilities] = Capabilities(formats=backends.FORMATS, libraries=True)
    ports: ClassVar[tuple[str, ...]] = ("http", "grpc", "metrics")
    Options: ClassVar[type] = Options

    def __init__(self) -> None:
        self._client = TritonClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the server, and the model repository as files below the run folder."""
        backend = backends.choose(spec)
        _refuse_unused(spec, backend)
        model = python_model(spec) if backend == "python" else vllm_model(spec)
        http, grpc, metrics = spec.ports
        host = spec.connect_host
        return LaunchPlan.of(
            spec,
            argv=(*_program(spec, backend), *_flags(spec)),
            endpoints=Endpoints(Endpoint(host, http), Endpoint(host, grpc), f"{Endpoint(host, metrics).url}/metrics"),
            probes=_probes(spec),
            env=_environment(spec, backend),
            files=model.files,
            links=model.links,
            # The places are fixed: shared memory that a killed stub leaves, and an empty folder of every start.
            leftovers=(f"/dev/shm/{_shm_prefix(spec)}*", "/tmp/python_env_??????"),  # noqa: S108
            chat=backend == "python",  # Triton's vLLM backend takes a prompt, and applies no template
            shm_size="1g",
            model_repository="models",
        )

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Ask over gRPC, or HTTP if `engine.protocol` says so."""
        return self._client.infer(target, request)

    def dialect(self, plan: LaunchPlan, options: Mapping[str, Any]) -> Dialect:  # noqa: ARG002
        """Return the translation into Triton's own protocols."""
        return TritonOpenAI(plan.model.id, plan.model.task, chat=plan.chat)

    def close(self) -> None:
        """Close the client's connections and streams."""
        self._client.close()

    def memory(
        self,
        model: Model,
        device: Device,
        options: Mapping[str, Any],
        args: Mapping[str, Any],  # noqa: ARG002
    ) -> MemoryUse | None:
        """Return the use of the chosen backend, beside Triton's own processes."""
        return backends.memory(model, device, options, memory_use.TRITON_CPU_BYTES)

    def system_libraries(self, key: str) -> Mapping[str, str]:  # noqa: ARG002
        """Return Python's library, which the Python backend's stub embeds."""
        return {"libpython{python}.so.1.0": "libpython{python}"}

    def external_program(self, kind: str, options: Mapping[str, Any]) -> str | None:
        """Return tritonserver for the vLLM backend and RBLN, which nvidia-pytriton's cannot serve; else None."""
        return _SERVER if _external(options["backend"], kind) else None

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:
        """Return the device kind, or `gpu-vllm` for the vLLM backend on GPUs."""
        return "gpu-vllm" if kind == "gpu" and options["backend"] == "vllm" else kind


def _refuse_unused(spec: ServeSpec, backend: str) -> None:
    if spec.options["protocol"] not in ("grpc", "http"):
        raise PlanError(f"engine.protocol={spec.options['protocol']!r} is not known; use grpc or http")
    workers = spec.options["workers"]
    if workers is not None and workers < 1:
        raise PlanError(f"engine.workers={workers}; it must be at least 1")
    if backend == "vllm" and workers:
        raise PlanError(f"engine.workers={workers} is for engine.backend=python; vLLM has engine.max_num_seqs")
    if backend == "vllm" and spec.options["handler"]:
        raise PlanError("engine.handler is a model.py for engine.backend=python; leave it out with backend=vllm")
    if backend == "python" and spec.options["max_num_seqs"]:
        raise PlanError("engine.max_num_seqs is for engine.backend=vllm; with backend=python use engine.workers")


def _program(spec: ServeSpec, backend: str) -> tuple[str, ...]:
    """Return the server's program, and the flag that says where its backends are.

    nvidia-pytriton carries a tritonserver that has the Python backend alone. The vLLM backend and RBLN need one from
    NVIDIA's container, which finds its backends by itself.
    """
    if _external(backend, spec.device.kind):
        server, backends = spec.program or _SERVER, spec.options["backend_directory"]
    else:
        server = spec.program or f"{spec.environment.site_packages}/pytriton/tritonserver/bin/tritonserver"
        backends = spec.options["backend_directory"] or f"{spec.run_dir}/backends"
    return (server, "--backend-directory", backends) if backends else (server,)


def _external(backend: str, kind: str) -> bool:
    return backend == "vllm" or kind == "rbln"


def _flags(spec: ServeSpec) -> list[str]:
    http, grpc, metrics = spec.ports
    flags = ["--model-repository", f"{spec.run_dir}/models"]
    # Complete configs, so that what is served is what the plan shows.
    flags += ["--disable-auto-complete-config", "--exit-on-error", "true", "--strict-readiness", "true"]
    # In-flight requests are answered within this many seconds; then the stub needs about 4 more to end.
    flags += ["--exit-timeout-secs", str(max(1, int(spec.stop_grace_s) - 4))]
    for service, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        flags += [f"--{service}-address", spec.bind, f"--{service}-port", str(port)]
    flags += ["--backend-config", f"python,shm-region-prefix-name={_shm_prefix(spec)}"]
    for key, value in spec.args.items():
        if value is not None:
            flags += ["--" + key.replace("_", "-"), str(value).lower() if isinstance(value, bool) else str(value)]
    return flags


def _shm_prefix(spec: ServeSpec) -> str:
    # Not the name: that of one deployment can be the beginning of another's.
    return f"rmlaunch-{sha256(spec.run_dir.encode()).hexdigest()[:12]}-"


def _environment(spec: ServeSpec, backend: str) -> Mapping[str, str]:
    env = {
        # The Python backend's stub takes the python3 that stands first.
        "PATH": f"{spec.environment.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HF_HUB_OFFLINE": "1",  # everything was fetched before the launch
    }
    if backend == "vllm" and spec.device.kind == "rbln":
        env |= rbln_vllm.environment(spec.device, spec.environment.requirements)
    if backend == "python" and spec.environment.library_dir:
        # The stub embeds Python: of two libpythons it must find the one that the environment stands on.
        env["LD_LIBRARY_PATH"] = spec.environment.library_dir
    return env


def _probes(spec: ServeSpec) -> Probes:
    ready = HttpCheck("/v2/health/ready")
    canary, counters = _canary(spec.model), ("nv_inference_exec_count",)
    return Probes(startup=ready, readiness=canary, liveness=canary, settings=spec.probes, progress=counters)


def _canary(model: Model) -> HttpCheck:
    """Return a real request, and what must be in its answer."""
    path = f"/v2/models/{model.id}"
    match model.task:
        case "generate":
            body: Mapping[str, Any] = {
                "text_input": "a",
                "stream": False,
                "exclude_input_in_output": True,
                "return_num_output_tokens": True,
                "sampling_parameters": json.dumps({"max_tokens": 1, "temperature": 0}),
            }
            return HttpCheck(f"{path}/generate", "POST", body, expect="num_output_tokens")
        case "embed":
            text = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a"]}
            return HttpCheck(f"{path}/infer", "POST", {"inputs": [text]}, expect="outputs.0.data")
        case _ if not _fits_json(model):
            return HttpCheck(f"{path}/ready")  # 200 once model.py has computed zeros
        case _:
            zeros = [_zeros(tensor) for tensor in model.inputs]
            return HttpCheck(f"{path}/infer", "POST", {"inputs": zeros}, expect="outputs")


def _fits_json(model: Model) -> bool:
    """Return whether the inputs can be asked in JSON.

    Triton takes and gives no float16 in JSON, and an image in it is half a megabyte.
    """
    numbers = sum(math.prod(map(abs, tensor.shape)) for tensor in model.inputs)
    return numbers <= _MOST_ZEROS and all(tensor.dtype != "float16" for tensor in (*model.inputs, *model.outputs))


def _zeros(tensor: TensorSpec) -> Mapping[str, Any]:
    """Return the tensor in KServe's JSON, all zeros; a size that is free is 1."""
    shape = [abs(size) for size in tensor.shape]
    zero = False if tensor.dtype == "bool" else 0
    return {
        "name": tensor.name,
        "shape": shape,
        "datatype": DATATYPES[tensor.dtype],
        "data": [zero] * math.prod(shape),
    }
