"""Decide what `auto` means: the device, and the engine on it. Pure; every choice comes with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from engines.base import Capabilities, PlanError

#: reason against a kind that this machine has no device of
ABSENT = "there is none here"


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device, as far as a choice depends on it."""

    kind: str
    unavailable_because: str = ""  #: `ABSENT`, or such as "is in use by deployment 'a'"
    optimized_for: Collection[str] = ()  #: goals


def choose_device(
    devices: Sequence[Device], engines: Mapping[str, Capabilities], task: str = "generate", goal: str | None = None
) -> tuple[str, str]:
    """Return the device kind, and the reasons for it and against the others. Raises `PlanError` if none can be used.

    `devices` has the best kind first; those made for the `goal` come before the others. `engines` are those that may be
    used.
    """
    ranked = sorted(devices, key=lambda device: goal not in device.optimized_for) if goal else list(devices)
    able = [device for device in ranked if any(task in can.tasks(device.kind) for can in engines.values())]
    for device in able:
        if not device.unavailable_because:
            why = [f"made for {goal}"] if goal in device.optimized_for else []
            why += _passed(ranked[: ranked.index(device)], engines)
            return device.kind, f"device=auto → {device.kind}{_in_brackets(why)}"
    if len(engines) == 1 and able:  # a plan is still possible, and a launch says what it has looked for
        (name,) = engines
        return able[
            0
        ].kind, f"device=auto → {able[0].kind} (the best that {name} can use; {able[0].unavailable_because})"
    found = ", ".join(device.kind for device in devices if not device.unavailable_because)
    for_task = "" if task == "generate" else f" for model.task={task}"
    raise PlanError(f"no device of this machine ({found}) can be used by engine {_or(engines)}{for_task}")


def choose_engine(
    kind: str,
    task: str,
    model_format: str,
    engines: Mapping[str, Capabilities],
    order: Sequence[str],
    leads_to: Collection[str] = (),
    goal: str | None = None,
) -> tuple[str, str]:
    """Return the engine, and the reasons for it and against the others. Raises `PlanError` if none fits.

    The first in `order` that reads the format as it is comes before one that needs a conversion (`leads_to`); with a
    `goal`, a conversion is no reason to pass over an engine. Engines that `order` does not name come last.
    """
    ranked = sorted(engines, key=lambda name: order.index(name) if name in order else len(order))
    able = [name for name in ranked if kind in engines[name].devices]
    if not able:
        raise PlanError(f"no engine can use device={kind}; engines: {', '.join(engines)}")
    able = [name for name in able if task in engines[name].tasks(kind)]
    if not able:
        raise PlanError(f"no engine does model.task={task} on device={kind}; engines: {', '.join(engines)}")
    reads: dict[str, str] = {}  # name → the format that it would get
    for name in able:
        formats = engines[name].formats[kind][task]
        reached = [model_format] if model_format in formats else [given for given in formats if given in leads_to]
        if reached:
            reads[name] = reached[0]
    if not reads:
        raise PlanError(f"no engine reads {model_format} on device={kind}, nor what it can be converted to")
    chosen = next((name for name, given in reads.items() if goal or given == model_format), next(iter(reads)))
    why = f"reads {reads[chosen]} on {kind}"
    if reads[chosen] != model_format:
        why += f", which {model_format} is converted to"
    alike = {name for name in reads if (reads[name] == model_format) is (reads[chosen] == model_format)}
    later = [name for name in reads if name != chosen and (goal or name in alike)]
    converted = [name for name in reads if name != chosen and name not in later]
    parts = [*([f"first for {goal}"] if goal else []), why]
    parts += [f"{', '.join(later)} {'follow' if len(later) > 1 else 'follows'} in policy.engines"] if later else []
    parts += [f"{', '.join(converted)} would need it converted"] if converted else []
    return chosen, f"engine=auto → {chosen}{_in_brackets(parts)}"


def _passed(devices: Sequence[Device], engines: Mapping[str, Capabilities]) -> list[str]:
    """Return why each of `devices` was passed over; several with the same reason share it."""
    whys: dict[str, list[str]] = {}
    for device in devices:
        why = device.unavailable_because or f"cannot be used by {_or(engines)}"
        whys.setdefault(why, []).append(device.kind)
    return [
        f"no {', '.join(kinds)} here" if why == ABSENT else f"{', '.join(kinds)} {why}" for why, kinds in whys.items()
    ]


def _in_brackets(parts: Sequence[str]) -> str:
    return f" ({'; '.join(parts)})" if parts else ""


def _or(engines: Mapping[str, Capabilities]) -> str:
    return " or ".join(engines)
