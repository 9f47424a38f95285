"""The model of a launch: the way to a format that the engine reads, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.base import (
    BuildStep,
    ConfigError,
    Device,
    Engine,
    Environment,
    Model,
    PlanError,
    ResourceError,
)
from launcher.config import model_source
from launcher.config.schema import LaunchConfig
from launcher.paths import cache_root, shipped
from launcher.planning import conversions, environments, precompiled, signatures
from launcher.planning.machine import Machine
from launcher.planning.workshop import Workshop


def resolve_model(
    config: LaunchConfig,
    engine: Engine,
    device: Device,
    environment: Environment,
    options: Mapping[str, Any],
    machine: Machine,
) -> tuple[Model, tuple[BuildStep, ...]]:
    """Return the model as the engine gets it, and the build steps that make it; () if the source is served as it is.

    Raises `PlanError` if the engine cannot do its task, or if no conversion leads to a format that the engine reads.
    """
    conf, sdk = config.model, config.device.sdk
    source = model_source.parse(conf.source)
    if source.kind == "file" and not source.path(cache_root()).exists():
        raise ConfigError(f"model.source={conf.source!r}: there is no {source.name}; check the path")
    tasks = ("tensor",) if sdk else engine.capabilities.tasks(device.kind)
    if conf.task not in tasks:
        able = f"engine={engine.name} on {device.kind} cannot do model.task={conf.task}"
        raise PlanError(f"{able}; it can do: {', '.join(tasks)}")
    path = str(source.path(cache_root()))
    given = model_source.format_of(conf.source, conf.format)
    wanted = tuple(sdk.runtime.reads) if sdk else engine.formats(device.kind, conf.task, options)
    compiles = sdk is not None and sdk.compiler is not None and given not in wanted
    shop = _workshop(config, device, environment, source, compiles=compiles, launches=machine.launches)
    reached, steps = conversions.steps(given, wanted, path, shop)
    if not reached:
        raise PlanError(
            f"engine={engine.name} on {device.kind} reads {', '.join(wanted)}, but model={conf.id} is {given} and no "
            "conversion leads there; choose another engine or model"
        )
    served = steps[-1].model_path if steps else path
    if not steps:
        precompiled.check(given, Path(path), environment)
    exported = given != "onnx" and reached == "onnx" and conf.task == "tensor"
    if exported and not (conf.inputs or conf.outputs):
        inputs, outputs = conversions.EXPORTED
    else:
        inputs, outputs = signatures.of(conf, given if given == "onnx" else reached, Path(path))
    model = Model(
        id=conf.id,
        source=conf.source,
        format=reached,
        path=served,
        task=conf.task,
        context_length=conf.context_length,
        dtype=conf.dtype,
        chat=conf.chat,
        batch_size=conf.build.get(device.kind, {}).get("batch_size"),
        identity=source.identity(),
        inputs=inputs,
        outputs=outputs,
    )
    return model, steps


def _workshop(
    config: LaunchConfig,
    device: Device,
    environment: Environment,
    source: model_source.Source,
    *,
    compiles: bool,
    launches: bool,
) -> Workshop:
    """Return the inputs of conversions; `compiles` allows the device's own compiler to be one of them."""
    conf = config.model
    compiler = None
    if compiles and config.device.sdk:
        from launcher.planning.compiler import BinaryCompilerAdapter  # not at the top: every launch would wait for it

        compiler = BinaryCompilerAdapter(config.device.sdk)
    if compiler and launches and (missing := compiler.missing(environment)):
        raise ResourceError(missing)
    return Workshop(
        cache=cache_root(),
        templates=shipped("templates"),
        model_id=conf.id,
        identity=source.identity(),
        context_length=conf.context_length,
        dtype=conf.dtype,
        product=device.product,
        device_count=device.count,
        settings=conf.build.get(device.kind, {}),
        converter=environments.describe("convert", "managed", config.builders.get("convert"), cache_root()),
        exporter=environments.describe("onnx", "managed", config.builders.get("onnx"), cache_root()),
        serving=environment,
        compiler=compiler,
        compiler_version=compiler.version(environment) if compiler else "",
    )


def resolve_library(config: LaunchConfig, device: Device, model: Model, machine: Machine) -> Mapping[str, Any]:
    """Return the closed runtime's table, as native.py in the serving process reads it; empty without `device.sdk`."""
    if config.device.sdk is None:
        return {}
    from launcher.planning.library import RuntimeDeclaration

    runtime = RuntimeDeclaration(config.device.sdk)
    if machine.launches:
        runtime.check_there()
    return runtime.given(device, model.outputs)
