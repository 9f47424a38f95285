"""The typed shape of the configuration: one dataclass per config group, registered with Hydra.

The values live in conf/*.yaml; a field without a default here must be given there. `None` means "not set: the
launcher or the engine decides".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: OmegaConf's mark for a value that must be given; written out, because importing it costs a tenth of a second
MISSING: Any = "???"


@dataclass
class EnvironmentConf:
    """The packages that one engine × device needs."""

    requirements: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  #: as in `uv pip install --override`
    indexes: list[str] = field(default_factory=list)  #: extra package indexes, searched before the default one
    python: str | None = None  #: "3.12"; None is the Python that runs rmlaunch


@dataclass
class EngineConf:
    name: str = MISSING
    environment: str = MISSING  #: managed, current, or the path of a Python environment that the user owns
    environments: dict[str, EnvironmentConf] = field(default_factory=dict)  #: by device kind
    images: dict[str, str] = field(default_factory=dict)  #: container image, by device kind
    program: str | None = None  #: the user's own server binary
    args: dict[str, Any] = field(default_factory=dict)  #: flags of the engine's program
    env: dict[str, str] = field(default_factory=dict)  #: variables of the engine's program


@dataclass
class TritonConf(EngineConf):
    backend: str = MISSING  #: auto, python or vllm
    protocol: str = MISSING  #: what the client speaks: grpc or http
    workers: int = MISSING  #: requests that are decoded at the same time (backend=python)
    handler: str | None = None  #: a model.py of the user's own in place of templates/triton/generate.py
    max_num_seqs: int | None = None  #: sequences in a batch (backend=vllm)
    backend_directory: str | None = None  #: where tritonserver finds its backends


@dataclass
class DeviceConf:
    kind: str = MISSING
    ids: list[int] | None = None
    count: int | None = None
    assume: str | None = None  #: plan for this product without looking for it


@dataclass
class ModelConf:
    id: str = MISSING
    source: str = MISSING
    format: str | None = None  #: None is read off the source
    task: str = MISSING
    context_length: int = MISSING
    dtype: str = MISSING
    chat: bool = MISSING
    build: dict[str, dict[str, Any]] = field(default_factory=dict)  #: compile settings, by device kind
    engine_args: dict[str, dict[str, Any]] = field(default_factory=dict)  #: flags that this model wants, by engine


@dataclass
class RuntimeConf:
    name: str = MISSING


@dataclass
class SamplingConf:
    max_tokens: int = MISSING
    temperature: float = MISSING
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None


@dataclass
class SuperviseConf:
    """Times are in seconds."""

    startup_timeout_s: float = MISSING
    stop_grace_s: float = MISSING
    max_crashes: int = MISSING
    backoff_s: float = MISSING
    backoff_max_s: float = MISSING
    stable_s: float = MISSING
    liveness_period_s: float = MISSING
    liveness_timeout_s: float = MISSING
    liveness_failures: int = MISSING


@dataclass
class LaunchConfig:
    engine: EngineConf = MISSING
    device: DeviceConf = MISSING
    model: ModelConf = MISSING
    runtime: RuntimeConf = MISSING
    builders: dict[str, EnvironmentConf] = field(default_factory=dict)  #: what conversions run in
    name: str | None = None
    host: str = MISSING
    port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    api_key: str | None = None
    prompt: str | None = None
    sampling: SamplingConf = field(default_factory=SamplingConf)
    supervise: SuperviseConf = field(default_factory=SuperviseConf)


#: group → option that a YAML file names in its defaults list to take on the schema
SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "base_config"): LaunchConfig,
    ("engine", "base_engine"): EngineConf,
    ("engine", "base_triton"): TritonConf,
    ("device", "base_device"): DeviceConf,
    ("model", "base_model"): ModelConf,
    ("runtime", "base_runtime"): RuntimeConf,
}


def register() -> None:
    """Give Hydra the schemas. Calling it again changes nothing."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for (group, name), node in SCHEMAS.items():
        store.store(name=name, node=node, group=group, provider="rmlaunch")
