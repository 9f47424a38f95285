"""What `auto` means: which device, and which engine on it. Pure; every choice comes with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from engines.base import Capabilities, PlanError


def choose_device(
    found: Sequence[str], engines: Mapping[str, Capabilities], order: Sequence[str], task: str = "generate"
) -> tuple[str, str]:
    """The device kind and why.

    `found` has the kinds that this machine has, `engines` those that may be used, and `order` the best kind first.
    """
    for kind in order:
        able = [name for name, can in engines.items() if task in can.tasks(kind)]
        if kind in found and able:
            return kind, f"device=auto → {kind}{_passed(order[: order.index(kind)], found, engines)}"
    if len(engines) == 1:  # a plan can be made all the same, and a launch says what it has looked for
        ((name, can),) = engines.items()
        for kind in order:
            if task in can.tasks(kind):
                return kind, f"device=auto → {kind} (the best that {name} can use; there is none here)"
    for_task = "" if task == "generate" else f" for model.task={task}"
    raise PlanError(f"no device of this machine ({', '.join(found)}) can be used by engine {_or(engines)}{for_task}")


def choose_engine(
    kind: str,
    task: str,
    model_format: str,
    engines: Mapping[str, Capabilities],
    order: Sequence[str],
    leads_to: Collection[str] = (),
) -> tuple[str, str]:
    """The engine and why: one that reads the format as it is, before one that reads what it `leads_to`.

    Among equals the first in `order` is taken; engines that it does not name come last.
    """
    ranked = sorted(engines, key=lambda name: order.index(name) if name in order else len(order))
    able = [name for name in ranked if kind in engines[name].devices]
    if not able:
        raise PlanError(f"no engine can use device={kind}; engines: {', '.join(engines)}")
    able = [name for name in able if task in engines[name].tasks(kind)]
    if not able:
        raise PlanError(f"no engine does model.task={task} on device={kind}; engines: {', '.join(engines)}")
    for name in able:
        if model_format in engines[name].formats[kind][task]:
            return name, f"engine=auto → {name} (reads {model_format} on {kind})"
    for name in able:
        for reached in engines[name].formats[kind][task]:
            if reached in leads_to:
                return name, f"engine=auto → {name} (reads {reached} on {kind}, which {model_format} is converted to)"
    raise PlanError(f"no engine reads {model_format} on device={kind}, nor what it can be converted to")


def _passed(kinds: Sequence[str], found: Sequence[str], engines: Mapping[str, Capabilities]) -> str:
    absent = [kind for kind in kinds if kind not in found]
    unusable = [kind for kind in kinds if kind in found]
    why = [f"no {', '.join(absent)} here"] if absent else []
    why += [f"{', '.join(unusable)} cannot be used by {_or(engines)}"] if unusable else []
    return f" ({'; '.join(why)})" if why else ""


def _or(engines: Mapping[str, Capabilities]) -> str:
    return " or ".join(engines)
