"""What `fit` is asked for one config on this machine: from here on its answer is data in the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import Device, Engine, MemoryUse, Model
from launcher import fit, model_facts, models, registry
from launcher.paths import cache_root
from launcher.schema import LaunchConfig


def fitted(
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
        format=models.format_of(conf.source, conf.format),
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
