"""Which of the devices that were found a deployment gets: free ones, and of one group where they have groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engines.base import ConfigError, Device, ResourceError
from launcher.config import declared_device
from launcher.config.schema import LaunchConfig
from launcher.deployments.ledger import Ledger
from launcher.devices.base import DevicePlugin, Resource

#: id → by whom, in words
Taken = Mapping[int, str]


def look(config: LaunchConfig) -> tuple[Resource, ...]:
    """What this machine has of the kind that `config` asks for; () where that is only to be assumed."""
    return () if config.device.assume else declared_device.plugin(config.device).detect()


def in_use(plugin: DevicePlugin, found: Sequence[Resource], ledger: Ledger, share: bool) -> Taken:
    """Those of `found` that a launch may not have: none, where they are everybody's or may be shared."""
    return {} if share or plugin.shared else taken(found, ledger.held_devices(plugin.kind), ledger.is_replaced)


def assign(
    config: LaunchConfig, found: Sequence[Resource], ledger: Ledger, to_launch: bool, wanted: int | None
) -> Device:
    """The devices that `config` asks for, of those that were `found`; `wanted` is how many, where an engine's own key
    says it.

    With `to_launch`, devices that this machine lacks, or that others have, are a `ResourceError`; without, they are
    assumed, and marked so.
    """
    plugin = declared_device.plugin(config.device)
    conf = dataclasses.replace(
        config.device,
        assume=_product_name(plugin, config.device.assume),
        product=_product_name(plugin, config.device.product),
    )
    if to_launch and not found:
        what = f"device.assume={conf.assume} only describes a device" if conf.assume else f"no {plugin.label} found"
        raise ResourceError(
            f"{what}: looked for {plugin.looked_for}; `rmlaunch plan` with the same words shows the launch without one"
        )
    for key, said in (("assume", conf.assume), ("product", conf.product)):
        if said and said not in plugin.products and (not found or key == "assume"):
            known = ", ".join(plugin.products) or "none; leave it out"
            raise ConfigError(f"device.{key}={said!r} is no {plugin.label} that is known; known: {known}")
    busy = in_use(plugin, found, ledger, conf.share) if to_launch else {}  # a mere plan takes nothing away
    kept = ledger.kept_devices(conf.kind)
    ids = _ids(config, plugin, sorted(found, key=lambda resource: resource.id not in kept), wanted, busy)
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
    )


def _ids(
    config: LaunchConfig, plugin: DevicePlugin, found: Sequence[Resource], wanted: int | None, in_use: Taken
) -> tuple[int, ...]:
    conf = config.device
    published = config.model.build.get(conf.kind, {}).get("num_devices")
    count = conf.count or (len(conf.ids) if conf.ids else wanted or published) or 1
    if not found:
        return tuple(conf.ids or range(count))
    return choose(plugin.kind, found, in_use, count, conf.ids)


def _product_name(plugin: DevicePlugin, said: str | None) -> str | None:
    """The product that `said` is short for, such as RTX3090; `said` itself where it is none, or several."""
    if said is None or said in plugin.products:
        return said
    plain = {name: name.replace(" ", "").replace("-", "").lower() for name in plugin.products}
    asked = said.replace(" ", "").replace("-", "").lower()
    near = [name for name, word in plain.items() if asked and word.endswith(asked)]
    near = near or [name for name, word in plain.items() if asked and asked in word]
    return near[0] if len(near) == 1 else said


def taken(
    found: Sequence[Resource], held: Mapping[int, str], is_replaced: Callable[[int], bool] = lambda _: False
) -> Taken:
    """The devices that are in use: by our deployments, as the ledger has it (`held`), or by who has memory of them.

    `is_replaced` says of a process whether it ends before the launch begins.
    """
    words = {
        resource.id: f"pid {', '.join(map(str, holders))}"
        for resource in found
        if (holders := sorted(pid for pid in resource.attributes.get("holders", ()) if not is_replaced(pid)))
    }
    return words | {number: f"deployment {name!r}" for number, name in held.items()}


def choose(
    kind: str, found: Sequence[Resource], in_use: Taken, count: int, ids: Sequence[int] | None = None
) -> tuple[int, ...]:
    """`ids`, or the first `count` devices that are free, of one group if they tell their groups (RBLN's RSD groups).

    Raises `ResourceError` that names who has what.
    """
    have = [resource.id for resource in found]
    if missing := sorted(set(ids or ()) - set(have)):
        raise ResourceError(f"device.ids={list(ids or ())}: this machine has no {kind} {missing}; it has {have}")
    if count > len(have):
        raise ResourceError(f"device.count={count}: this machine has {len(have)} of {kind}; it has {have}")
    group = {resource.id: resource.attributes.get("group") for resource in found}
    if ids:
        _check_given(kind, ids, in_use, group)
        return tuple(ids)
    free = [number for number in have if number not in in_use]
    for name in dict.fromkeys(group[number] for number in free):
        if len(fit := [number for number in free if group[number] == name]) >= count:
            return tuple(fit[:count])
    if len(free) >= count:
        raise ResourceError(f"device.count={count}: no group of {kind} has as many free; {_by_group(free, group)}")
    raise ResourceError(
        f"device.count={count}: of {kind} {have}, {_by_whom(have, in_use)}; stop that, or set device.share=true"
    )


def _check_given(kind: str, ids: Sequence[int], in_use: Taken, group: Mapping[int, object]) -> None:
    if busy := [number for number in ids if number in in_use]:
        raise ResourceError(
            f"device.ids={list(ids)}: of {kind}, {_by_whom(busy, in_use)}; choose others, stop that, or set "
            "device.share=true"
        )
    if len({group[number] for number in ids}) > 1:
        raise ResourceError(
            f"device.ids={list(ids)}: a deployment needs devices of one group of {kind}; {_by_group(ids, group)}"
        )


def _by_whom(ids: Sequence[int], in_use: Taken) -> str:
    return ", ".join(f"{number} is in use by {in_use[number]}" for number in ids if number in in_use)


def _by_group(ids: Sequence[int], group: Mapping[int, object]) -> str:
    names = dict.fromkeys(group[number] for number in ids)
    return ", ".join(f"group {name} has {[number for number in ids if group[number] == name]}" for name in names)
