"""`ServingConfig`: a deployment described in Python, without overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from engines.base import ConfigError
from launcher.config.compose import quoted
from launcher.serving.engine import ServingEngine, launch, model_overrides


class ServingEngineType(str, Enum):
    """The engines that rmlaunch ships; `AUTO` lets the policy choose."""

    AUTO = "auto"
    VLLM = "vllm"
    TRITON = "triton"
    TORCHSERVE = "torchserve"
    LLAMACPP = "llamacpp"
    TRANSFORMERS = "transformers"
    FURIOSA = "furiosa"
    REMOTE = "remote"


class DeviceTarget(str, Enum):
    """The device kinds that rmlaunch ships; `AUTO` lets the policy choose."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"
    RBLN = "rbln"
    FURIOSA = "furiosa"
    PIM = "pim"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """The wishes for a launch; None is as in conf/. Engines and devices of other packages are given by name."""

    engine: ServingEngineType | str = ServingEngineType.AUTO
    device: DeviceTarget | str = DeviceTarget.AUTO
    model: str | None = None  #: a name of conf/model, `org/name` of the Hugging Face hub, or a `model.source`
    runtime: str | None = None
    name: str | None = None  #: the deployment's name
    host: str | None = None
    port: int | None = None
    api_key: str | None = None
    device_ids: Sequence[int] | None = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)  #: keys of `engine.…`
    engine_args: Mapping[str, Any] = field(default_factory=dict)  #: flags of the engine's program
    env: Mapping[str, str] = field(default_factory=dict)  #: variables of the engine's program
    overrides: Sequence[str] = ()  #: anything else, as on the command line; they come last
    config_dir: str | None = None

    def as_overrides(self) -> list[str]:
        """Return the same config as overrides of the command line."""
        words = [f"engine={_word(self.engine)}", f"device={_word(self.device)}"]
        words += model_overrides(self.model) if self.model else []
        plain = {"runtime": self.runtime, "port": self.port}
        words += [f"{key}={value}" for key, value in plain.items() if value is not None]
        texts = {"name": self.name, "host": self.host, "api_key": self.api_key, "device.ids": self.device_ids}
        words += [f"{key}={_value(value)}" for key, value in texts.items() if value is not None]
        for prefix, mapping in (
            ("engine", self.engine_options),
            ("engine.args", self.engine_args),
            ("engine.env", self.env),
        ):
            words += [f"{prefix}.{key}={_value(value)}" for key, value in mapping.items()]
        return [*words, *self.overrides]


def create_serving_engine(config: ServingConfig) -> ServingEngine:
    """Return a `ServingEngine` for `config`; it starts when it is entered, or with `start()`.

    Raises `ConfigError` or `PlanError` at once where the config is wrong.
    """
    return launch(*config.as_overrides(), config_dir=config.config_dir)


def _word(name: Enum | str) -> str:
    return str(name.value if isinstance(name, Enum) else name)


def _value(value: object) -> str:
    """Return `value` in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Enum):
        return quoted(str(value.value))
    if isinstance(value, str):
        return quoted(value)
    raise ConfigError(f"{value!r} is a {type(value).__name__}; a config holds texts, numbers, lists and mappings")
