"""Which of the devices that were found a deployment gets: free ones, and of one group where they have groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from engines.base import ConfigError, Device, ResourceError
from launcher.config import declared_device
from launcher.config.schema import LaunchConfig
from launcher.devices.base import DevicePlugin, Resource
from launcher.planning.machine import Machine

#: id → by whom, in words
Taken = Mapping[int, str]


class Choices:
    """The devices that a config may have on this machine, or those that it is to assume."""

    def __init__(self, config: LaunchConfig, machine: Machine) -> None:
        """Raises `ResourceError` for a launch without such a device, and `ConfigError` for an unknown product."""
        self.plugin = plugin = declared_device.plugin(config.device)
        self.found = found = machine.devices(config.device)
        self._config = config
        self._conf = conf = dataclasses.replace(
            config.device,
            assume=_product_name(plugin, config.device.assume),
            product=_product_name(plugin, config.device.product),
        )
        if machine.launches and not found:
            what = f"device.assume={conf.assume} only describes a device" if conf.assume else f"no {plugin.label} found"
            raise ResourceError(
                f"{what}: looked for {plugin.looked_for}; `rmlaunch plan` with the same words shows the launch without "
                "one"
            )
        for key, said in (("assume", conf.assume), ("product", conf.product)):
            if said and said not in plugin.products and (not found or key == "assume"):
                known = ", ".join(plugin.products) or "none; leave it out"
                raise ConfigError(f"device.{key}={said!r} is no {plugin.label} that is known; known: {known}")
        # A mere plan takes nothing away from anybody.
        self._busy = machine.in_use(plugin, found, conf.share) if machine.launches else {}
        kept = machine.ledger.kept_devices(conf.kind)
        self._kept_first = sorted(found, key=lambda resource: resource.id not in kept)

    def device(self, wanted: int | None) -> Device:
        """Return the devices of a launch; `wanted` is how many, where neither the config nor the model says it.

        Raises `ResourceError` where there are not as many free ones.
        """
        conf, plugin, found = self._conf, self.plugin, self.found
        ids = _ids(self._config, plugin, self._kept_first, wanted, self._busy)
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
