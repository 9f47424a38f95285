"""`LaunchConfig` → `ServeSpec`: the needed facts about the machine and its files become data in the spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.base import (
    ConfigError,
    Engine,
    Environment,
    PlanError,
    ProbeSettings,
    ServeSpec,
)
from launcher import registry
from launcher.config.schema import ContainerConf, LaunchConfig, SuperviseConf, options_of
from launcher.paths import artifacts_root, cache_root, shipped
from launcher.planning import environments, fitting
from launcher.planning.assignment import Choices
from launcher.planning.machine import Machine
from launcher.planning.model import resolve_library, resolve_model
from launcher.planning.place import check_bind, resolve_place, resolve_ports


def resolve(config: LaunchConfig, machine: Machine) -> tuple[Engine, ServeSpec]:
    """Return the engine, and the spec that it plans `config` from.

    For a launch, hardware that the machine lacks is a `ResourceError`; for a plan, it is assumed and marked so.
    """
    ledger = machine.ledger
    engine = registry.engine(config.engine.name)
    options = options_of(config.engine)
    kind = config.device.kind
    _check_device(config, engine)
    check_bind(config, engine)
    _check_inherit(config)
    if isinstance(config.runtime, ContainerConf):
        from launcher.planning import containers  # not at the top: a launch without one would wait for it

        containers.check(config, machine)
    wanted_count = engine.device_count(kind, options)
    choices = Choices(config, machine)
    found, device = choices.found, choices.device(wanted_count)
    fit, notes = fitting.choose(config, engine, device, choices.suitable, wanted_count, options)
    if fit and fit.count != device.count:
        device = choices.device(fit.count)
    if fit and fit.context_length < config.model.context_length:
        model_conf = dataclasses.replace(config.model, context_length=fit.context_length)
        config = dataclasses.replace(config, model=model_conf)
    key, environment = _environment(config, engine, options)
    model, steps = resolve_model(config, engine, device, environment, options, machine)
    library = resolve_library(config, device, model, machine)
    name = ledger.free_name(config.name, f"{engine.name}-{kind}-{config.model.id}")
    run_dir = str(ledger.deployments / name / "run")
    sources = shipped("templates")
    place = resolve_place(config, engine, key, options, environment, device, found, name, run_dir)
    return engine, ServeSpec(
        name=name,
        engine=engine.name,
        device=place.device,
        model=model,
        runtime=config.runtime.name,
        environment=place.environment,
        bind=place.bind,
        ports=resolve_ports(config, engine, ledger),
        run_dir=run_dir,
        artifacts=str(artifacts_root(cache_root())),
        options=place.options,
        args=config.engine.args,
        env={key: str(value) for key, value in config.engine.env.items()},
        inherit=tuple(config.engine.inherit),
        templates={**_texts(sources / engine.name), **_texts(sources / "models"), **_handler(options.get("handler"))},
        builds=steps,
        library=library,
        container=place.container,
        published=place.published,
        tools=place.tools,
        program=place.program,
        api_key=config.api_key,
        stop_grace_s=config.supervise.stop_grace_s,
        probes=_probes(config.supervise),
        memory=fit.memory if fit else None,
        notes=(*notes, *_unset(config, machine)),
    )


def _check_inherit(config: LaunchConfig) -> None:
    if config.engine.inherit and (isinstance(config.runtime, ContainerConf) or config.runtime.name == "none"):
        raise PlanError(
            f"engine.inherit={config.engine.inherit}: with runtime={config.runtime.name} no program inherits from this "
            "machine's shell; give a container's variables as engine.env.NAME='${oc.env:NAME}'"
        )


def _unset(config: LaunchConfig, machine: Machine) -> Iterator[str]:
    for name in config.engine.inherit:
        if not name.endswith("*") and name not in machine.variables:
            yield f"engine.inherit={name}: that variable is not set here"


def _environment(config: LaunchConfig, engine: Engine, options: Mapping[str, Any]) -> tuple[str, Environment]:
    """Return the key of the packages in the engine's config, and their environment on this machine."""
    key = engine.environment_key(config.device.kind, options)
    conf = config.engine
    if config.device.sdk and key not in conf.environments:
        key = "cpu"  # our code around the library needs no more than numpy
    name = f"{engine.name}-{key}"
    return key, environments.describe(name, conf.environment, conf.environments.get(key), cache_root())


def _probes(conf: SuperviseConf) -> ProbeSettings:
    return ProbeSettings(
        conf.startup_timeout_s,
        conf.liveness_period_s,
        conf.liveness_timeout_s,
        conf.liveness_failures,
        conf.stall_timeout_s,
        conf.busy_timeout_s,
    )


def _check_device(config: LaunchConfig, engine: Engine) -> None:
    if config.device.sdk and not engine.capabilities.libraries:
        raise PlanError(f"engine={engine.name} runs no C library, which device.sdk is; use engine=triton or torchserve")
    if not config.device.sdk and config.device.kind not in engine.capabilities.devices:
        able = ", ".join(engine.capabilities.devices)
        raise PlanError(f"engine={engine.name} cannot use device={config.device.kind}; it can use: {able}")


def _texts(folder: Path) -> Mapping[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.glob("*")) if file.is_file()}


def _handler(path: str | None) -> Mapping[str, str]:
    if not path:
        return {}
    try:
        return {"handler": Path(path).expanduser().read_text()}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"engine.handler={path!r} cannot be read: {exc}") from exc
