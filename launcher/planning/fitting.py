"""Put the question to `launcher/fit`: the model's files, and the devices and memory of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import Device, Engine, MemoryUse, Model
from launcher.config import model_source
from launcher.config.schema import LaunchConfig
from launcher.devices.base import Resource
from launcher.fit import estimate, model_facts
from launcher.fit.estimate import Fit, FitRequest
from launcher.paths import cache_root


def choose(
    config: LaunchConfig,
    engine: Engine,
    device: Device,
    found: Sequence[Resource],
    wanted: int | None,
    options: Mapping[str, Any],
) -> tuple[Fit | None, tuple[str, ...]]:
    """Return the devices and context on which the model fits, and notes for the user; None if too little is known.

    `found` are this machine's devices of that kind and product; `wanted` is the number that the options ask for. Raises
    `PlanError` if the model does not fit.
    """
    estimate.check_choice(config.fit)
    model = _bare_model(config)
    use = engine.memory(model, device, options, config.engine.args)
    if use is None or config.fit == "off":
        return None, ()
    unknown = f"the size of {model.id} is not known, so whether it fits is not checked"
    facts = model_facts.of(config.model, Path(model.path))
    if facts is None:
        return None, (unknown,)
    asked = bool(config.device.count or config.device.ids or wanted)
    published = not asked and "num_devices" in config.model.build.get(device.kind, {})
    request = FitRequest(
        model=model.id,
        engine=engine.name,
        facts=facts,
        use=use,
        device=device,
        counts=_counts(device, len(found), use, facts, given=asked or published),
        # A compiled model keeps the length that it was compiled for.
        shorten=config.fit == "auto" and use.context_key == "model.context_length" and device.kind in ("cpu", "gpu"),
        published=published and config.fit == "auto",
        in_use=_in_use(found) if device.kind == "cpu" else 0,
    )
    if facts.num_devices:
        return estimate.compiled(request, given=asked), ()
    chosen = estimate.choose(request)
    return chosen, chosen.notes if chosen else (unknown,)


def _bare_model(config: LaunchConfig) -> Model:
    """Return the model as its source has it, before any conversion."""
    conf = config.model
    return Model(
        id=conf.id,
        source=conf.source,
        format=model_source.format_of(conf.source, conf.format),
        path=str(model_source.parse(conf.source).path(cache_root())),
        task=conf.task,
        context_length=conf.context_length,
        dtype=conf.dtype,
        batch_size=conf.build.get(config.device.kind, {}).get("batch_size"),
    )


def _counts(device: Device, most: int, use: MemoryUse, facts: model_facts.ModelFacts, *, given: bool) -> Sequence[int]:
    if given or device.assumed or device.kind == "cpu" or not use.spread:
        return (device.count,)
    return tuple(estimate.counts(use, facts, most))


def _in_use(found: Sequence[Resource]) -> int:
    """Return the bytes of main memory that programs use and would not give back; 0 if unknown."""
    attributes = found[0].attributes if found else {}
    memory, available = attributes.get("memory_bytes"), attributes.get("available_bytes")
    return max(0, memory - available) if memory and available is not None else 0
