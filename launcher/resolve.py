"""`LaunchConfig` → `ServeSpec`: the one stage that looks at the machine; what it sees becomes data in the spec."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import (
    LOOPBACK,
    BuildStep,
    Capabilities,
    ConfigError,
    Device,
    Engine,
    Environment,
    MemoryUse,
    Model,
    PlanError,
    ProbeSettings,
    ResourceError,
    ServeSpec,
)
from launcher import (
    artifacts,
    assignment,
    builds,
    compiled,
    environments,
    fit,
    model_facts,
    models,
    policy,
    registry,
    signatures,
)
from launcher.adapters.compiler import BinaryCompilerAdapter
from launcher.adapters.runtime import RuntimeDeclaration
from launcher.composed import compose
from launcher.devices import declared
from launcher.devices.base import DevicePlugin, Resource
from launcher.ledger import Ledger
from launcher.paths import cache_root, shipped, state_root
from launcher.schema import EngineConf, LaunchConfig
from launcher.validate import check

#: config keys that mean the same for every engine; what an engine's schema adds to them are its own options
_COMMON_KEYS = frozenset(field.name for field in dataclasses.fields(EngineConf))


@dataclass(frozen=True, slots=True)
class Request:
    """A config in which nothing says `auto` any more, and why each choice was made."""

    config: LaunchConfig
    reasons: tuple[str, ...]
    overrides: tuple[str, ...] = ()  #: what it was composed from
    config_dir: str | None = None


def settle(overrides: Sequence[str], config_dir: str | None = None) -> Request:
    """Compose `overrides` and decide what they leave to us. Raises `RequestError`."""
    config = compose(overrides, config_dir)
    check(config)
    reasons: list[str] = []
    if "auto" in (config.engine.name, config.device.kind):
        config, reasons = _decide(config, overrides, config_dir)
    able = registry.engine_class(config.engine.name).capabilities.runtimes
    if config.runtime.name == "auto":
        config.runtime.name = able[0]
    elif config.runtime.name not in able:
        raise PlanError(
            f"engine={config.engine.name} cannot use runtime={config.runtime.name}; it can use: {', '.join(able)}"
        )
    if (sdk := config.device.sdk) and sdk.simulated:
        reasons.append(f"device={config.device.kind} is simulated ({sdk.label}): this processor computes in its place")
    wanted = config.model.engine_args.get(config.engine.name, {})
    said = {item.lstrip("+").partition("=")[0] for item in overrides}
    if config.fit == "auto" and "model.context_length" in said:
        config.fit = "keep"
    # What the model wants beats the engine's defaults, and what the user says beats both.
    config.engine.args |= {key: value for key, value in wanted.items() if f"engine.args.{key}" not in said}
    config.api_key = config.api_key or _key_from_environment(config.engine, "engine.api_key_env" in said)
    return Request(config, tuple(reasons), tuple(overrides), config_dir)


def _key_from_environment(engine: EngineConf, asked: bool) -> str | None:
    variable = engine.api_key_env
    key = os.environ.get(variable) if variable else None
    if asked and variable and not key:
        raise ConfigError(f"engine.api_key_env={variable}, but that variable is not set; set it, or leave the key out")
    return key


def _decide(config: LaunchConfig, overrides: Sequence[str], config_dir: str | None) -> tuple[LaunchConfig, list[str]]:
    reasons: list[str] = []
    names = registry.names("engine") if config.engine.name == "auto" else [config.engine.name]
    able = {name: registry.engine_class(name).capabilities for name in names}
    kind, task = config.device.kind, config.model.task
    if kind == "auto":
        kind, why = policy.choose_device(_devices(config), able, task, config.policy.goal)
        reasons.append(why)
    if config.engine.name == "auto":
        given = _source_format(config)
        order = config.policy.engines.get(kind) or config.policy.engines["default"]
        if sdk := config.device.sdk:
            able = {name: _with_library(can, kind, sdk.runtime.reads) for name, can in able.items() if can.libraries}
        compiler = config.device.sdk and config.device.sdk.compiler
        leads_to = builds.reachable(given, compiler.reads if compiler else ())
        name, why = policy.choose_engine(kind, task, given, able, order, leads_to, config.policy.goal)
        reasons.append(why)
        others = [item for item in overrides if not item.startswith("engine=")]
        config = compose([*others, f"engine={name}"], config_dir)
    config.device.kind = kind
    return config, reasons


def _devices(config: LaunchConfig) -> list[policy.Device]:
    """What this machine has free, the best kind first."""
    ledger = Ledger(state_root())
    return [_device_of(kind, ledger, config.device.share) for kind in config.policy.devices]


def _device_of(kind: str, ledger: Ledger, share: bool) -> policy.Device:
    plugin = registry.device(kind)
    found = plugin.detect()
    if not found:
        return policy.Device(kind, policy.ABSENT)
    in_use = {} if share or plugin.shared else assignment.taken(found, ledger.held_devices(kind))
    busy = ", ".join(dict.fromkeys(in_use.values())) if len(in_use) == len(found) else ""
    return policy.Device(kind, f"is in use by {busy}" if busy else "")


def _with_library(can: Capabilities, kind: str, reads: Sequence[str]) -> Capabilities:
    """What an engine can do on a device whose runtime is a library that the config declares."""
    return dataclasses.replace(can, formats={kind: {"tensor": tuple(reads)}})


def resolve(config: LaunchConfig, ledger: Ledger, *, to_launch: bool) -> tuple[Engine, ServeSpec]:
    """The engine and everything it may look at to plan `config`.

    With `to_launch`, hardware that this machine lacks is a `ResourceError`; without, it is assumed and marked so.
    """
    engine = registry.engine(config.engine.name)
    options = {k: v for k, v in dataclasses.asdict(config.engine).items() if k not in _COMMON_KEYS}
    kind = config.device.kind
    if config.device.sdk and not engine.capabilities.libraries:
        raise PlanError(f"engine={engine.name} runs no C library, which device.sdk is; use engine=triton or torchserve")
    if not config.device.sdk and kind not in engine.capabilities.devices:
        able = ", ".join(engine.capabilities.devices)
        raise PlanError(f"engine={engine.name} cannot use device={kind}; it can use: {able}")
    _check_bind(config, engine)
    wanted_count = engine.device_count(kind, options)
    device = _device(config, ledger, to_launch, wanted_count)
    fitted, notes = _fitted(config, engine, device, options, wanted_count)
    if fitted and fitted.count != device.count:
        device = _device(config, ledger, to_launch, fitted.count)
    if fitted and fitted.context_length < config.model.context_length:
        model_conf = dataclasses.replace(config.model, context_length=fitted.context_length)
        config = dataclasses.replace(config, model=model_conf)
    key = engine.environment_key(kind, options)
    if config.device.sdk and key not in config.engine.environments:
        key = "cpu"  # our code around the library needs no more than numpy
    environment = environments.describe(
        f"{engine.name}-{key}", config.engine.environment, config.engine.environments.get(key), cache_root()
    )
    model, steps = _model(config, engine, device, environment, options, to_launch)
    library = _library(config, device, model, to_launch)
    name = ledger.free_name(config.name, f"{engine.name}-{kind}-{config.model.id}")
    wanted = {"port": config.port, "grpc_port": config.grpc_port, "metrics_port": config.metrics_port}
    listened = ["port" if port == "http" else f"{port}_port" for port in engine.ports]
    for unused in wanted.keys() - set(listened):
        if wanted[unused] is not None:
            raise PlanError(f"{unused}={wanted[unused]}, but engine={engine.name} has no such port; leave it out")
    wishes = {port: wanted.get(port) for port in listened}
    if config.supervise.metrics_port:  # the supervisor's own: none of the engine's may be the same
        wishes["supervise.metrics_port"] = config.supervise.metrics_port
    sources = shipped("templates")
    return engine, ServeSpec(
        name=name,
        engine=engine.name,
        device=device,
        model=model,
        runtime=config.runtime.name,
        environment=environment,
        bind=config.host,
        ports=ledger.choose_ports(config.host, wishes)[: len(listened)],
        run_dir=str(ledger.deployments / name / "run"),
        artifacts=str(artifacts.folder(cache_root())),
        options=options,
        args=config.engine.args,
        env={key: str(value) for key, value in config.engine.env.items()},
        templates={**_texts(sources / engine.name), **_texts(sources / "models"), **_handler(options.get("handler"))},
        builds=steps,
        library=library,
        image=config.engine.images.get(key),
        program=config.engine.program,
        api_key=config.api_key,
        stop_grace_s=config.supervise.stop_grace_s,
        probes=ProbeSettings(
            config.supervise.startup_timeout_s,
            config.supervise.liveness_period_s,
            config.supervise.liveness_timeout_s,
            config.supervise.liveness_failures,
            config.supervise.stall_timeout_s,
            config.supervise.busy_timeout_s,
        ),
        memory=fitted.memory if fitted else None,
        notes=notes,
    )


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


def _device(config: LaunchConfig, ledger: Ledger, to_launch: bool, wanted: int | None) -> Device:
    plugin = declared.plugin(config.device)
    conf = dataclasses.replace(
        config.device,
        assume=_product_name(plugin, config.device.assume),
        product=_product_name(plugin, config.device.product),
    )
    found = () if conf.assume else plugin.detect()
    if to_launch and not found:
        what = f"device.assume={conf.assume} only describes a device" if conf.assume else f"no {plugin.label} found"
        raise ResourceError(
            f"{what}: looked for {plugin.looked_for}; `rmlaunch plan` with the same words shows the launch without one"
        )
    for key, said in (("assume", conf.assume), ("product", conf.product)):
        if said and said not in plugin.products and (not found or key == "assume"):
            known = ", ".join(plugin.products) or "none; leave it out"
            raise ConfigError(f"device.{key}={said!r} is no {plugin.label} that is known; known: {known}")
    alone = to_launch and not conf.share and not plugin.shared  # a mere plan takes nothing away
    in_use = assignment.taken(found, ledger.held_devices(conf.kind)) if alone else {}
    ids = _ids(config, plugin, found, wanted, in_use)
    by_id = {resource.id: resource.attributes for resource in found}
    first: Mapping[str, Any] = by_id.get(ids[0], {}) if found else {}
    product = first.get("product") if found else conf.assume or conf.product or plugin.assumed_product
    if conf.product and product not in (None, conf.product):
        raise ResourceError(
            f"device.product={conf.product!r}, but {plugin.kind} {ids[0]} of this machine is {product!r}"
        )
    memory = first.get("memory_bytes") if found else plugin.products.get(product or "")
    return Device(
        kind=conf.kind,
        ids=ids,
        product=product or conf.product,
        memory_bytes=memory,
        assumed=not found,
        simulated=conf.sdk is not None and conf.sdk.simulated,
        env=plugin.visible_env(ids, found),
        nodes=plugin.nodes(ids),
    )


def _fitted(
    config: LaunchConfig, engine: Engine, device: Device, options: Mapping[str, Any], wanted: int | None
) -> tuple[fit.Fit | None, tuple[str, ...]]:
    """Devices and context on which the model fits, and what to say of it. Raises `PlanError` where it does not."""
    fit.check_choice(config.fit)
    conf = config.model
    source = models.parse(conf.source)
    model = _bare_model(config, source)
    use = engine.memory(model, device, options, config.engine.args)
    if use is None or config.fit == "off":
        return None, ()
    facts = model_facts.of(conf, source.path(cache_root()))
    unknown = f"the size of {conf.id} is not known, so whether it fits is not checked"
    if facts is None:
        return None, (unknown,)
    asked = bool(config.device.count or config.device.ids or wanted)
    published = not asked and "num_devices" in conf.build.get(device.kind, {})
    ask = fit.Question(
        model=conf.id,
        engine=engine.name,
        facts=facts,
        use=use,
        device=device,
        counts=[device.count] if asked or published or device.assumed else _counts(device.kind, use, facts),
        # What is compiled is compiled for its length.
        shorten=config.fit == "auto" and use.context_key == "model.context_length" and device.kind in ("cpu", "gpu"),
        published=published and config.fit == "auto",
        in_use=_in_use() if device.kind == "cpu" else 0,
    )
    found = fit.answer(ask)
    return found, found.notes if found else (unknown,)


def _bare_model(config: LaunchConfig, source: models.Source) -> Model:
    """The model as its source has it, before any conversion."""
    conf = config.model
    return Model(
        id=conf.id,
        source=conf.source,
        format=_source_format(config),
        path=str(source.path(cache_root())),
        task=conf.task,
        context_length=conf.context_length,
        dtype=conf.dtype,
        batch_size=conf.build.get(config.device.kind, {}).get("batch_size"),
    )


def _counts(kind: str, use: MemoryUse, facts: model_facts.ModelFacts) -> Sequence[int]:
    found = 1 if kind == "cpu" or not use.spread else len(registry.device(kind).detect())
    return tuple(fit.counts(use, facts, found))


def _in_use() -> int:
    """Bytes of this machine's memory that programs have, and would not give back."""
    words = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(words[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return total - free


def _product_name(plugin: DevicePlugin, said: str | None) -> str | None:
    """The product that `said` is short for, such as RTX3090; `said` itself where it is none, or several."""
    if said is None or said in plugin.products:
        return said
    plain = {name: name.replace(" ", "").replace("-", "").lower() for name in plugin.products}
    asked = said.replace(" ", "").replace("-", "").lower()
    near = [name for name, word in plain.items() if asked and word.endswith(asked)]
    near = near or [name for name, word in plain.items() if asked and asked in word]
    return near[0] if len(near) == 1 else said


def _ids(
    config: LaunchConfig, plugin: DevicePlugin, found: Sequence[Resource], wanted: int | None, in_use: assignment.Taken
) -> tuple[int, ...]:
    conf = config.device
    published = config.model.build.get(conf.kind, {}).get("num_devices")
    count = conf.count or (len(conf.ids) if conf.ids else wanted or published) or 1
    if not found:
        return tuple(conf.ids or range(count))
    return assignment.choose(plugin.kind, found, in_use, count, conf.ids)


def _source_format(config: LaunchConfig) -> str:
    named = config.model.format
    if named and named not in models.FORMATS:
        raise ConfigError(f"model.format={named!r} is not known; known: {', '.join(models.FORMATS)}")
    return named or models.parse(config.model.source).format()


def _model(
    config: LaunchConfig,
    engine: Engine,
    device: Device,
    environment: Environment,
    options: Mapping[str, Any],
    to_launch: bool,
) -> tuple[Model, tuple[BuildStep, ...]]:
    conf, sdk = config.model, config.device.sdk
    source = models.parse(conf.source)
    if source.kind == "file" and not source.path(cache_root()).exists():
        raise ConfigError(f"model.source={conf.source!r}: there is no {source.name}; check the path")
    tasks = ("tensor",) if sdk else engine.capabilities.tasks(device.kind)
    if conf.task not in tasks:
        able = f"engine={engine.name} on {device.kind} cannot do model.task={conf.task}"
        raise PlanError(f"{able}; it can do: {', '.join(tasks)}")
    path = str(source.path(cache_root()))
    given = _source_format(config)
    wanted = tuple(sdk.runtime.reads) if sdk else engine.formats(device.kind, conf.task, options)
    compiler = BinaryCompilerAdapter(sdk) if sdk and sdk.compiler and given not in wanted else None
    if compiler and to_launch and (missing := compiler.missing(environment)):
        raise ResourceError(missing)
    converter = config.builders.get("convert")
    shop = builds.Workshop(
        cache=cache_root(),
        templates=shipped("templates"),
        model_id=conf.id,
        identity=source.identity(),
        context_length=conf.context_length,
        dtype=conf.dtype,
        product=device.product,
        device_count=device.count,
        settings=conf.build.get(device.kind, {}),
        converter=environments.describe("convert", "managed", converter, cache_root()),
        serving=environment,
        compiler=compiler,
        compiler_version=compiler.version(environment) if compiler else "",
    )
    reached, steps = builds.steps(given, wanted, path, shop)
    if not reached:
        raise PlanError(
            f"engine={engine.name} on {device.kind} reads {', '.join(wanted)}, but model={conf.id} is {given} and no "
            "conversion leads there; choose another engine or model"
        )
    served = steps[-1].model_path if steps else path
    if not steps:
        compiled.check(given, Path(path), environment)
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


def _library(config: LaunchConfig, device: Device, model: Model, to_launch: bool) -> Mapping[str, Any]:
    """The closed runtime that runs the model, as native.py in the serving process reads it."""
    if config.device.sdk is None:
        return {}
    runtime = RuntimeDeclaration(config.device.sdk)
    if to_launch:
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
