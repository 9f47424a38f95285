"""The typed shape of the configuration: one dataclass per config group, registered with Hydra.

The values live in conf/*.yaml; a field without a default here must be given there. `None` means "not set: the
launcher or the engine decides". What only one engine knows is declared by that engine (`Engine.Options`).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, cast

from engines.base import MISSING, ConfigError
from launcher.config.sdk import SdkConf

log = logging.getLogger(__name__)


@dataclass
class EnvironmentConf:
    """The packages that one engine × device needs."""

    requirements: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  #: as in `uv pip install --override`
    indexes: list[str] = field(default_factory=list)  #: extra package indexes, searched before the default one
    python: str | None = None  #: "3.12"; None is the Python that runs rmlaunch


@dataclass
class LayoutConf:
    """Where an image has things that is not built by us, or not on a base of ours."""

    environment: str | None = None  #: the folder that has bin/python and lib/python3.x; None is as we build it
    python: str | None = None  #: "3.12"; None is that of the packages
    program: str | None = None  #: the server, where it is not in the environment
    options: dict[str, Any] = field(default_factory=dict)  #: keys of the engine that follow from it
    base: str | None = None  #: to build on, where there is no image to pull


@dataclass
class EngineConf:
    name: str = MISSING
    environment: str = MISSING  #: managed, current, or the path of a Python environment that the user owns
    environments: dict[str, EnvironmentConf] = field(default_factory=dict)  #: by device kind
    images: dict[str, str] = field(default_factory=dict)  #: container image to pull, by device kind
    layouts: dict[str, LayoutConf] = field(default_factory=dict)  #: where things are in it, by device kind
    program: str | None = None  #: the user's own server binary
    args: dict[str, Any] = field(default_factory=dict)  #: flags of the engine's program
    env: dict[str, str] = field(default_factory=dict)  #: variables of the engine's program
    inherit: list[str] = field(default_factory=list)  #: variables of yours that it gets besides launcher/inheritance.py
    api_key_env: str | None = None  #: the variable that holds api_key where that is not given


def options_of(conf: EngineConf) -> dict[str, Any]:
    """The keys that only its engine has (`Engine.Options`); those of `EngineConf` mean the same for every engine."""
    common = {field.name for field in fields(EngineConf)}
    return {key: value for key, value in asdict(conf).items() if key not in common}


@cache
def engine_conf(name: str) -> type[EngineConf]:
    """`EngineConf` with the keys that the engine `name` adds to it. Raises `ConfigError` where it cannot be had."""
    from launcher import registry

    kind = make_dataclass(f"{name}Conf", [], bases=(registry.engine_class(name).Options, EngineConf))
    return cast(type[EngineConf], kind)


@dataclass
class DeviceConf:
    kind: str = MISSING
    ids: list[int] | None = None
    count: int | None = None
    #: the product that the launch is for: a plan describes one without looking for it, a launch takes no other
    assume: str | None = None
    product: str | None = None  #: `assume` by its older name, and None once that is settled
    share: bool = False  #: take devices that others use, too
    sdk: SdkConf | None = None  #: a vendor's compiler and runtime that no plugin of ours knows (docs/npu-vendors.md)


@dataclass
class TensorConf:
    name: str = MISSING
    dtype: str = MISSING  #: numpy's name
    shape: list[int] = MISSING  #: -1 is any size


@dataclass
class FactsConf:
    """Sizes of a model that need not be here to be known: from its published config.json, by that file's names.

    But for num_kv_heads: what is named like a key is taken for a secret.
    """

    of: str = MISSING  #: what model.source begins with; for any other source they do not count
    parameters: int = MISSING  #: elements of the weights
    stored_bytes: int | None = None  #: of a GGUF file's weights
    model_type: str | None = None
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    num_kv_heads: int | None = None  #: None is as many as attention heads
    head_dim: int | None = None  #: None is hidden_size / num_attention_heads
    intermediate_size: int | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: int | None = None
    max_position_embeddings: int | None = None
    dtype: str | None = None  #: that the weights are published in


@dataclass
class ModelConf:
    id: str = MISSING
    source: str = MISSING
    format: str | None = None  #: None is read off the source
    task: str = MISSING
    context_length: int = MISSING
    dtype: str = MISSING
    chat: bool = MISSING
    inputs: list[TensorConf] | None = None  #: of task=tensor; None is read from the file, where the format says it
    outputs: list[TensorConf] | None = None
    build: dict[str, dict[str, Any]] = field(default_factory=dict)  #: compile settings, by device kind
    engine_args: dict[str, dict[str, Any]] = field(default_factory=dict)  #: flags that this model wants, by engine
    facts: FactsConf | None = None  #: None is read from the model's files, once they are here


@dataclass
class RuntimeConf:
    name: str = MISSING


@dataclass
class ContainerConf(RuntimeConf):
    """Of a runtime that runs images."""

    image: str | None = None
    environment: str | None = None
    pull: str = MISSING
    base: str | None = None
    bases: dict[str, str] = field(default_factory=dict)  #: by version of Python
    network: str = MISSING
    user: str | None = None
    devices: str = MISSING  #: auto, cdi or nodes
    memory: str | None = None
    cpus: float | None = None
    pids: int | None = None
    shm_size: str | None = None
    read_only: bool | None = None
    mounts: list[str] = field(default_factory=list)


GOALS = ("latency", "throughput", "memory", "energy")


@dataclass
class PolicyConf:
    """What `auto` means; the first that fits is taken."""

    goal: str | None = None  #: one of `GOALS`; devices that are made for it come first
    devices: list[str] = MISSING
    engines: dict[str, list[str]] = MISSING  #: by device kind; `default` for kinds that are not named


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
    stall_timeout_s: float = MISSING
    busy_timeout_s: float = MISSING
    log_mib: int = MISSING
    metrics_port: int | None = None


@dataclass
class LaunchConfig:
    engine: EngineConf = MISSING
    device: DeviceConf = MISSING
    model: ModelConf = MISSING
    runtime: RuntimeConf = MISSING
    policy: PolicyConf = MISSING
    builders: dict[str, EnvironmentConf] = field(default_factory=dict)  #: what conversions run in
    name: str | None = None
    host: str = MISSING
    port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    api_key: str | None = None
    fit: str = MISSING  #: auto, keep or off
    prompt: str | None = None
    sampling: SamplingConf = field(default_factory=SamplingConf)
    supervise: SuperviseConf = field(default_factory=SuperviseConf)


#: group → option that a YAML file names in its defaults list to take on the schema
SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "base_config"): LaunchConfig,
    ("engine", "base_engine"): EngineConf,
    ("device", "base_device"): DeviceConf,
    ("model", "base_model"): ModelConf,
    ("runtime", "base_runtime"): RuntimeConf,
    ("runtime", "base_container"): ContainerConf,
    ("policy", "base_policy"): PolicyConf,
}


def register() -> None:
    """Give Hydra the schemas. Calling it again changes nothing."""
    from hydra.core.config_store import ConfigStore

    from launcher import registry
    from launcher.config.gateway import GatewayConf, GatewayRoot

    nodes = {**SCHEMAS, (None, "base_gateway_root"): GatewayRoot, ("gateway", "base_gateway"): GatewayConf}
    for name in registry.names("engine"):
        try:
            nodes["engine", f"base_{name}"] = engine_conf(name)
        except ConfigError as exc:  # noqa: PERF203  (a broken plugin must not stop the others)
            log.warning("%s", exc)
    store = ConfigStore.instance()
    for (group, name), node in nodes.items():
        store.store(name=name, node=node, group=group, provider="rmlaunch")
