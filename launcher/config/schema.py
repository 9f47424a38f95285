"""The typed shape of the configuration: one dataclass per config group, registered with Hydra.

The values live in conf/*.yaml; a field without a default here must be given there. `None` means "not set: the
launcher or the engine decides". Keys of one engine alone are declared by that engine (`Engine.Options`).
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
    overrides: list[str] = field(default_factory=list)  #: for `uv pip install --override`
    indexes: list[str] = field(default_factory=list)  #: extra package indexes, searched before the default one
    python: str | None = None  #: "3.12"; None is the Python that runs rmlaunch


@dataclass
class LayoutConf:
    """The places of things in an image that we did not build, or not on a base of ours."""

    environment: str | None = None  #: folder with bin/python and lib/python3.x; None is as we build it
    python: str | None = None  #: "3.12"; None is the version of the packages
    program: str | None = None  #: path of the server, if it is not in the environment
    options: dict[str, Any] = field(default_factory=dict)  #: keys of the engine that follow from the image
    base: str | None = None  #: image to build on, if there is none to pull


@dataclass
class EngineConf:
    """The keys that mean the same for every engine; an engine adds its own (`engine_conf`)."""

    name: str = MISSING
    environment: str = MISSING  #: managed, current, or the path of a Python environment that the user owns
    environments: dict[str, EnvironmentConf] = field(default_factory=dict)  #: by device kind
    images: dict[str, str] = field(default_factory=dict)  #: container image to pull, by device kind
    layouts: dict[str, LayoutConf] = field(default_factory=dict)  #: places of things in the image, by device kind
    program: str | None = None  #: the user's own server binary
    args: dict[str, Any] = field(default_factory=dict)  #: flags of the engine's program
    env: dict[str, str] = field(default_factory=dict)  #: variables of the engine's program
    inherit: list[str] = field(default_factory=list)  #: variables of yours to pass on, besides launcher/inheritance.py
    api_key_env: str | None = None  #: the variable that holds api_key if that is not given


def options_of(conf: EngineConf) -> dict[str, Any]:
    """Return the keys that only this engine has (`Engine.Options`), without those of `EngineConf`."""
    common = {field.name for field in fields(EngineConf)}
    return {key: value for key, value in asdict(conf).items() if key not in common}


@cache
def engine_conf(name: str) -> type[EngineConf]:
    """Return `EngineConf` with the keys that the engine `name` adds. Raises `ConfigError` if it cannot be loaded."""
    from launcher import registry

    kind = make_dataclass(f"{name}Conf", [], bases=(registry.engine_class(name).Options, EngineConf))
    return cast(type[EngineConf], kind)


@dataclass
class DeviceConf:
    """The devices to run on: those of `ids`, or `count` free ones. None lets the engine and the model decide."""

    kind: str = MISSING
    ids: list[int] | None = None
    count: int | None = None
    #: product to launch for: a plan assumes it without looking, a launch takes no other; None takes any
    assume: str | None = None
    product: str | None = None  #: older name of `assume`; None once the config is settled
    share: bool = False  #: also take devices that others use
    sdk: SdkConf | None = None  #: a vendor's compiler and runtime that no plugin of ours knows (docs/npu-vendors.md)


@dataclass
class TensorConf:
    """One input or output of a tensor model."""

    name: str = MISSING
    dtype: str = MISSING  #: numpy's name
    shape: list[int] = MISSING  #: -1 is any size


@dataclass
class FactsConf:
    """Sizes of a model that has not been fetched: from its published config.json, by that file's names.

    Only num_kv_heads differs: a name with `key` in it is taken for a secret.
    """

    of: str = MISSING  #: beginning of the model.source that the facts are for; any other source ignores them
    parameters: int = MISSING  #: elements of the weights
    stored_bytes: int | None = None  #: bytes of a GGUF file's weights
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
    dtype: str | None = None  #: dtype of the published weights


@dataclass
class ModelConf:
    """The model: where it comes from, what it is for, and how it is compiled and served."""

    id: str = MISSING
    source: str = MISSING
    format: str | None = None  #: None is read off the source
    task: str = MISSING
    context_length: int = MISSING
    dtype: str = MISSING
    chat: bool = MISSING
    inputs: list[TensorConf] | None = None  #: for task=tensor; None is read from the file, if its format says it
    outputs: list[TensorConf] | None = None
    build: dict[str, dict[str, Any]] = field(default_factory=dict)  #: compile settings, by device kind
    engine_args: dict[str, dict[str, Any]] = field(default_factory=dict)  #: flags that this model wants, by engine
    facts: FactsConf | None = None  #: None is read from the model's files once they are fetched


@dataclass
class RuntimeConf:
    """The runtime that starts the engine's program; `ContainerConf` is for those that run images."""

    name: str = MISSING


@dataclass
class ContainerConf(RuntimeConf):
    """A runtime that runs images; None lets the launcher or Docker decide."""

    image: str | None = None
    environment: str | None = None
    pull: str = MISSING
    base: str | None = None
    bases: dict[str, str] = field(default_factory=dict)  #: base image by version of Python
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
    """The preferences behind `auto`; the first that fits is taken."""

    goal: str | None = None  #: one of `GOALS`; devices that are made for it come first
    devices: list[str] = MISSING
    engines: dict[str, list[str]] = MISSING  #: by device kind; `default` for kinds that are not named


@dataclass
class SamplingConf:
    """The sampling options for `prompt`; None leaves the option to the engine."""

    max_tokens: int = MISSING
    temperature: float = MISSING
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None


@dataclass
class SuperviseConf:
    """The limits of a supervisor; `_s` is seconds. metrics_port None publishes no metrics."""

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
    """One launch, composed and typed: the root that `compose` returns."""

    engine: EngineConf = MISSING
    device: DeviceConf = MISSING
    model: ModelConf = MISSING
    runtime: RuntimeConf = MISSING
    policy: PolicyConf = MISSING
    builders: dict[str, EnvironmentConf] = field(default_factory=dict)  #: environments that conversions run in
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


#: (group, option) → schema; a YAML file takes on the schema by naming the option in its defaults list
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
