"""llama.cpp's server: GGUF models on CPU or GPU, with an OpenAI-compatible API.

It runs inside Python (package xllamacpp, started by templates/llamacpp/server.py), or as the user's own
`llama-server` (engine.program), with the same command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from engines.base import (
    Answer,
    Capabilities,
    Endpoint,
    Endpoints,
    Engine,
    LaunchPlan,
    Request,
    ServeSpec,
    Target,
)
from engines.openai_http import OpenAIClient, probes


class LlamaCpp(Engine):
    name: ClassVar[str] = "llamacpp"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={kind: {"generate": ("gguf",), "embed": ("gguf",)} for kind in ("cpu", "gpu")},
        api_key=True,
    )

    def __init__(self) -> None:
        self._client = OpenAIClient()

    def plan(self, spec: ServeSpec) -> LaunchPlan:
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
        argv += _flags({"n_gpu_layers": 999 if spec.device.kind == "gpu" else None, **spec.args})
        return LaunchPlan.of(
            spec,
            argv=argv,
            endpoints=Endpoints(http, metrics=f"{http.url}/metrics" if spec.args.get("metrics") else None),
            probes=probes(spec, ("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total")),
            env={"LLAMA_API_KEY": spec.api_key} if spec.api_key else {},
            files=files,
        )

    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        return self._client.infer(target, request)

    def close(self) -> None:
        self._client.close()


def _flags(args: Mapping[str, Any]) -> list[str]:
    """`{"ctx_size": 4096, "mlock": True}` becomes `["--ctx-size", "4096", "--mlock"]`."""
    flags: list[str] = []
    for key, value in args.items():
        if value is None or value is False:
            continue
        flags.append("--" + key.replace("_", "-"))
        if value is not True:
            flags.append(str(value))
    return flags
