"""`LaunchConfig` → `ServeSpec`: all that a plan needs to know of the machine and of files becomes data in the spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import (
    LOOPBACK,
    LOOPBACK_ADDRESS,
    BuildStep,
    ConfigError,
    Container,
    Device,
    Engine,
    Environment,
    Model,
    PlanError,
    ProbeSettings,
    ResourceError,
    ServeSpec,
)
from launcher import registry
from launcher.config import declared_device, model_source
from launcher.config.schema import ContainerConf, LaunchConfig, SuperviseConf, options_of
from launcher.deployments.ledger import Ledger
from launcher.devices.base import Resource
from launcher.paths import artifacts_root, cache_root, shipped
from launcher.planning import conversions, environments, fitting, precompiled, signatures
from launcher.planning.assignment import Choices
from launcher.planning.machine import Machine
from launcher.planning.workshop import Workshop

#: what a server listens on in a container: its own loopback cannot be reached from outside
_ANY = "0.0.0.0"  # noqa: S104  (published on the address that was asked for, by default this machine's loopback)


def resolve(config: LaunchConfig, machine: Machine) -> tuple[Engine, ServeSpec]:
    """Return the engine and everything that it needs to know to plan `config`.

    For a launch, hardware that the machine lacks is a `ResourceError`; for a plan, it is assumed and marked so.
    """
    ledger = machine.ledger
    engine = registry.engine(config.engine.name)
    options = options_of(config.engine)
    kind = config.device.kind
    _check_device(config, engine)
    _check_bind(config, engine)
    _check_inherit(config)
    if isinstance(config.runtime, ContainerConf):
        from launcher.planning import containers  # not at the top: a launch without one would wait for it

        containers.check(config, machine)
    wanted_count = engine.device_count(kind, options)
    choices = Choices(config, machine)
    found, device = choices.found, choices.device(wanted_count)
    fit, notes = fitting.choose(config, engine, device, found, wanted_count, options)
    if fit and fit.count != device.count:
        device = choices.device(fit.count)
    if fit and fit.context_length < config.model.context_length:
        model_conf = dataclasses.replace(config.model, context_length=fit.context_length)
        config = dataclasses.replace(config, model=model_conf)
    key, environment = _environment(config, engine, options)
    model, steps = _model(config, engine, device, environment, options, machine)
    library = _library(config, device, model, machine)
    name = ledger.free_name(config.name, f"{engine.name}-{kind}-{config.model.id}")
    run_dir = str(ledger.deployments / name / "run")
    sources = shipped("templates")
    place = _place(config, engine, key, options, environment, device, found, name, run_dir)
    return engine, ServeSpec(
        name=name,
        engine=engine.name,
        device=place.device,
        model=model,
        runtime=config.runtime.name,
        environment=place.environment,
        bind=place.bind,
        ports=_ports(config, engine, ledger),
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
    """The key of its packages in the engine's config, and where they are on this machine."""
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


@dataclass(frozen=True, slots=True)
class _Place:
    """What depends on where the program runs, by the names of `ServeSpec`: on this machine, or in a container of it."""

    device: Device
    environment: Environment
    bind: str
    options: Mapping[str, Any]
    program: str | None
    container: Container | None = None
    published: str = ""
    tools: Environment | None = None


def _place(
    config: LaunchConfig,
    engine: Engine,
    key: str,
    options: Mapping[str, Any],
    here: Environment,
    device: Device,
    found: Sequence[Resource],
    name: str,
    run_dir: str,
) -> _Place:
    if not isinstance(config.runtime, ContainerConf):
        return _Place(device, here, config.host, options, config.engine.program)
    from launcher.planning import containers

    settings = declared_device.plugin(config.device).container(device.ids, found)
    if not device.assumed:  # a vendor's tool that is not installed here is none that the engine could miss
        there = tuple(mount for mount in settings.mounts if Path(mount.partition(":")[0]).exists())
        settings = dataclasses.replace(settings, mounts=there)
    layout = containers.layout(config.engine, key)
    return _Place(
        device=dataclasses.replace(device, env=settings.env),
        environment=containers.environment(config.engine, config.runtime, key, here),
        bind=_ANY,
        options={**options, **layout.options},
        program=config.engine.program or layout.program,
        container=containers.describe(config, engine, key, here, settings, name, run_dir),
        published=LOOPBACK_ADDRESS if config.host == "localhost" else config.host,
        tools=here,
    )


def _ports(config: LaunchConfig, engine: Engine, ledger: Ledger) -> tuple[int, ...]:
    """One for each of `engine.ports`."""
    wanted = {"port": config.port, "grpc_port": config.grpc_port, "metrics_port": config.metrics_port}
    listened = ["port" if port == "http" else f"{port}_port" for port in engine.ports]
    for unused in wanted.keys() - set(listened):
        if wanted[unused] is not None:
            raise PlanError(f"{unused}={wanted[unused]}, but engine={engine.name} has no such port; leave it out")
    wishes = {port: wanted.get(port) for port in listened}
    if config.supervise.metrics_port:  # the supervisor's own: none of the engine's may be the same
        wishes["supervise.metrics_port"] = config.supervise.metrics_port
    return ledger.choose_ports(config.host, wishes)[: len(listened)]


def _check_device(config: LaunchConfig, engine: Engine) -> None:
    if config.device.sdk and not engine.capabilities.libraries:
        raise PlanError(f"engine={engine.name} runs no C library, which device.sdk is; use engine=triton or torchserve")
    if not config.device.sdk and config.device.kind not in engine.capabilities.devices:
        able = ", ".join(engine.capabilities.devices)
        raise PlanError(f"engine={engine.name} cannot use device={config.device.kind}; it can use: {able}")


def _check_bind(config: LaunchConfig, engine: Engine) -> None:
    if config.api_key and not engine.capabilities.api_key:
        raise PlanError(f"api_key is set, but engine={engine.name} cannot demand a key; leave it out")
    if config.host in LOOPBACK or config.api_key:
        return
    if engine.capabilities.api_key:
        raise PlanError(f"host={config.host!r} can be reached from outside; set api_key, or use host=127.0.0.1")
    raise PlanError(
        f"host={config.host!r} can be reached from outside and engine={engine.name} cannot demand a key; "
        "use host=127.0.0.1"
    )


def _model(
    config: LaunchConfig,
    engine: Engine,
    device: Device,
    environment: Environment,
    options: Mapping[str, Any],
    machine: Machine,
) -> tuple[Model, tuple[BuildStep, ...]]:
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
    """What conversions are made from; `compiles` says that the device's own compiler may be one of them."""
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


def _library(config: LaunchConfig, device: Device, model: Model, machine: Machine) -> Mapping[str, Any]:
    """The closed runtime that runs the model, as native.py in the serving process reads it."""
    if config.device.sdk is None:
        return {}
    from launcher.planning.library import RuntimeDeclaration

    runtime = RuntimeDeclaration(config.device.sdk)
    if machine.launches:
        runtime.check_there()
    return runtime.given(device, model.outputs)


def _texts(folder: Path) -> Mapping[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.glob("*")) if file.is_file()}


def _handler(path: str | None) -> Mapping[str, str]:
    if not path:
        return {}
    try:
        return {"handler": Path(path).expanduser().read_text()}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"engine.handler={path!r} cannot be read: {exc}") from exc
