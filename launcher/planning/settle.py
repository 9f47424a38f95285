"""Settle a config: decide each `auto` on this machine, and set the keys that follow from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.base import Capabilities, ConfigError, PlanError
from launcher import registry
from launcher.config import model_source
from launcher.config.cache import compose
from launcher.config.schema import DeviceConf, EngineConf, LaunchConfig
from launcher.config.validate import check
from launcher.planning import conversions, policy, runtime_choice
from launcher.planning.machine import Machine


@dataclass(frozen=True, slots=True)
class Settled:
    """A config without `auto`, and the reason for each choice."""

    config: LaunchConfig
    reasons: tuple[str, ...]
    overrides: tuple[str, ...] = ()  #: words that the config was composed from
    config_dir: str | None = None


def settle(overrides: Sequence[str], machine: Machine, config_dir: str | None = None) -> Settled:
    """Compose `overrides` and decide each `auto`. Raises `RequestError`."""
    config = compose(overrides, config_dir)
    check(config)
    reasons: list[str] = []
    if "auto" in (config.engine.name, config.device.kind):
        config, reasons = _decide(config, overrides, config_dir, machine)
    reasons += _one_key_for_the_product(config)
    config, why = _runtime(config, overrides, config_dir, machine)
    reasons += why
    if (sdk := config.device.sdk) and sdk.simulated:
        reasons.append(f"device={config.device.kind} is simulated ({sdk.label}): this processor computes in its place")
    wanted = config.model.engine_args.get(config.engine.name, {})
    said = {item.lstrip("+").partition("=")[0] for item in overrides}
    if config.fit == "auto" and "model.context_length" in said:
        config.fit = "keep"
    # The model's flags beat the engine's defaults, and the user's beat both.
    config.engine.args |= {key: value for key, value in wanted.items() if f"engine.args.{key}" not in said}
    config.api_key = config.api_key or _key_from_environment(config.engine, "engine.api_key_env" in said, machine)
    return Settled(config, tuple(reasons), tuple(overrides), config_dir)


def _one_key_for_the_product(config: LaunchConfig) -> Iterator[str]:
    """Move `device.product` to `device.assume`, whose older name it is; yield a note if it was set."""
    if product := config.device.product:
        config.device.assume, config.device.product = product, None
        yield f"device.product={product} is taken for device.assume={product}, as that key is called now"


def _runtime(
    config: LaunchConfig, overrides: Sequence[str], config_dir: str | None, machine: Machine
) -> tuple[LaunchConfig, Sequence[str]]:
    """Return the config with its runtime decided, and the reasons. Raises `PlanError`."""
    engine = registry.engine(config.engine.name)
    able, asked = engine.capabilities.runtimes, config.runtime.name
    if asked != "auto" and asked not in able:
        raise PlanError(f"engine={engine.name} cannot use runtime={asked}; it can use: {', '.join(able)}")
    if asked != "auto":
        return config, ()
    if len(able) == 1:
        name, reasons = able[0], []
    else:
        name, why = runtime_choice.choose(config, engine, machine)
        reasons = [why]
    if name == runtime_choice.DOCKER:  # it has keys of its own
        others = [item for item in overrides if not item.startswith("runtime=")]
        config.runtime = compose([*others, f"runtime={name}"], config_dir).runtime
    config.runtime.name = name
    return config, reasons


def _key_from_environment(engine: EngineConf, asked: bool, machine: Machine) -> str | None:
    variable = engine.api_key_env
    key = machine.variables.get(variable) if variable else None
    if asked and variable and not key:
        raise ConfigError(f"engine.api_key_env={variable}, but that variable is not set; set it, or leave the key out")
    return key


def _decide(
    config: LaunchConfig, overrides: Sequence[str], config_dir: str | None, machine: Machine
) -> tuple[LaunchConfig, list[str]]:
    reasons: list[str] = []
    names = registry.names("engine") if config.engine.name == "auto" else [config.engine.name]
    able = {name: registry.engine_class(name).capabilities for name in names}
    kind, task = config.device.kind, config.model.task
    if kind == "auto":
        kind, why = policy.choose_device(_devices(config, machine), able, task, config.policy.goal)
        reasons.append(why)
    if config.engine.name == "auto":
        given = model_source.format_of(config.model.source, config.model.format)
        order = config.policy.engines.get(kind) or config.policy.engines["default"]
        if sdk := config.device.sdk:
            able = {name: _with_library(can, kind, sdk.runtime.reads) for name, can in able.items() if can.libraries}
        compiler = config.device.sdk and config.device.sdk.compiler
        leads_to = conversions.reachable(given, compiler.reads if compiler else ())
        name, why = policy.choose_engine(kind, task, given, able, order, leads_to, config.policy.goal)
        reasons.append(why)
        others = [item for item in overrides if not item.startswith("engine=")]
        config = compose([*others, f"engine={name}"], config_dir)
    config.device.kind = kind
    return config, reasons


def _devices(config: LaunchConfig, machine: Machine) -> list[policy.Device]:
    """Return the kinds of devices that the policy names, best first, each with the reason why it is not available."""
    return [_device_of(kind, machine, config.device.share) for kind in config.policy.devices]


def _device_of(kind: str, machine: Machine, share: bool) -> policy.Device:
    plugin = registry.device(kind)
    found = machine.devices(DeviceConf(kind))
    if not found:
        return policy.Device(kind, policy.ABSENT)
    in_use = machine.in_use(plugin, found, share)
    busy = ", ".join(dict.fromkeys(in_use.values())) if len(in_use) == len(found) else ""
    optimized_for = plugin.capability(found[0].attributes.get("product")).optimized_for
    return policy.Device(kind, f"is in use by {busy}" if busy else "", optimized_for)


def _with_library(can: Capabilities, kind: str, reads: Sequence[str]) -> Capabilities:
    """Return the capabilities of an engine on a device whose runtime is a library of the config."""
    return dataclasses.replace(can, formats={kind: {"tensor": tuple(reads)}})
