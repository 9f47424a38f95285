"""What `auto` means: which device, and which engine on it. Pure; every choice comes with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from engines.base import Capabilities, PlanError

#: what is worth most first
DEVICE_ORDER = ("rbln", "furiosa", "gpu", "pim", "cpu")
#: among engines that read the format equally well; llama.cpp starts fastest and is the embedded default
ENGINE_ORDER = ("llamacpp", "triton")


def choose_device(found: Sequence[str], engines: Mapping[str, Capabilities]) -> tuple[str, str]:
    """The device kind and why. `found` has the kinds that this machine has, `engines` those that may be used."""
    for kind in DEVICE_ORDER:
        able = [name for name, can in engines.items() if kind in can.devices]
        if kind in found and able:
            passed = DEVICE_ORDER[: DEVICE_ORDER.index(kind)]
            missing = f" (no {', '.join(passed)} that {_or(engines)} can use)" if passed else ""
            return kind, f"device=auto → {kind}{missing}"
    raise PlanError(f"no device of this machine ({', '.join(found)}) can be used by engine {_or(engines)}")


def choose_engine(
    kind: str, model_format: str, engines: Mapping[str, Capabilities], leads_to: Collection[str] = ()
) -> tuple[str, str]:
    """The engine and why: one that reads the format as it is, before one that reads what it `leads_to`."""
    order = sorted(engines, key=lambda name: ENGINE_ORDER.index(name) if name in ENGINE_ORDER else len(ENGINE_ORDER))
    able = [name for name in order if kind in engines[name].devices]
    if not able:
        raise PlanError(f"no engine can use device={kind}; engines: {', '.join(engines)}")
    for name in able:
        if model_format in engines[name].formats[kind]:
            return name, f"engine=auto → {name} (reads {model_format} on {kind})"
    for name in able:
        for reached in engines[name].formats[kind]:
            if reached in leads_to:
                return name, f"engine=auto → {name} (reads {reached} on {kind}, which {model_format} is converted to)"
    raise PlanError(f"no engine reads {model_format} on device={kind}, nor what it can be converted to")


def _or(engines: Mapping[str, Capabilities]) -> str:
    return " or ".join(engines)
