"""llama.cpp's server: GGUF models on CPU or GPU, with an OpenAI-compatible API.

The server runs inside Python (package xllamacpp, started by templates/llamacpp/server.py), or as the user's own
`llama-server` (engine.program), with the same command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from engines import memory_use
from engines.base import (
    Answer,
    Capabilities,
    Device,
    Endpoint,
    Endpoints,
    Engine,
    LaunchPlan,
    MemoryUse,
    Model,
    Request,
    ServeSpec,
    Target,
)
from engines.openai_http import OpenAIClient, probes


class LlamaCpp(Engine):
    """The engine that runs llama.cpp's server."""

    name: ClassVar[str] = "llamacpp"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={kind: {"generate": ("gguf",), "embed": ("gguf",)} for kind in ("cpu", "gpu")},
        api_key=True,
    )

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the server; on a GPU every layer is offloaded, unless engine.args says otherwise."""
        (port,) = spec.ports
        http = Endpoint(spec.connect_host, port)
        files: dict[str, str] = {}
        if spec.program:
            argv = [spec.program]
        else:
            files["server.py"] = spec.templates["server.py"]
            argv = [f"{spec.environment.bin}/python", f"{spec.run_dir}/server.py"]
        argv += ["--model", spec.model.path, "--alias", spec.model.id]
        argv += ["--host", spec.bind, "--port", str(port)]
        if spec.model.task == "embed":
            argv += ["--embeddings", "--pooling", "mean"]
        offloaded = 999 if spec.device.kind == "gpu" else None
        argv += _flags({"ctx_size": spec.model.context_length, "n_gpu_layers": offloaded, **spec.args})
        return LaunchPlan.of(
            spec,
            argv=argv,
            endpoints=Endpoints(http, metrics=f"{http.url}/metrics" if spec.args.get("metrics") else None),
            probes=probes(spec, ("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total")),
            env={"LLAMA_API_KEY": spec.api_key} if spec.api_key else {},
            files=files,
        )

    def memory(
        self,
        model: Model,
        device: Device,
        options: Mapping[str, Any],  # noqa: ARG002
        args: Mapping[str, Any],
    ) -> MemoryUse | None:
        """Return the use of a GPU that has every layer; None if engine.args leaves some to the processor."""
        if device.kind == "gpu" and args.get("n_gpu_layers") not in (None, "all", -2, 999):
            return None  # layers that are left to the processor take no memory of the GPU
        return memory_use.llama_cpp(model, device, args)

    def system_libraries(self, key: str) -> Mapping[str, str]:  # noqa: ARG002
        """Return OpenMP's library."""
        return {"libgomp.so.1": "libgomp1"}

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Ask through OpenAI's API."""
        return self._client.infer(target, request)

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


def _flags(args: Mapping[str, Any]) -> list[str]:
    """Return the flags: `{"ctx_size": 4096, "mlock": True}` is `["--ctx-size", "4096", "--mlock"]`."""
    flags: list[str] = []
    for key, value in args.items():
        if value is None or value is False:
            continue
        flags.append("--" + key.replace("_", "-"))
        if value is not True:
            flags.append(str(value))
    return flags
