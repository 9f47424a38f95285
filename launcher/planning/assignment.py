"""Assign devices to a deployment: free ones, and of one group if they have groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from engines.base import ConfigError, Device, ResourceError
from launcher.config import declared_device
from launcher.config.schema import DeviceConf, LaunchConfig
from launcher.devices.base import DevicePlugin, Resource
from launcher.planning.machine import Machine

#: device id → its user, in words
Taken = Mapping[int, str]


class Choices:
    """The devices that a config may use on this machine, or those that a plan assumes."""

    def __init__(self, config: LaunchConfig, machine: Machine) -> None:
        """Find them. Raises `ResourceError` for a launch without such a device, `ConfigError` for a wrong product."""
        self.plugin = plugin = declared_device.plugin(config.device)
        conf = config.device
        # A plan takes a known product for granted; a simulated one is always there.
        assumed = not machine.launches and not plugin.shared and _meant(conf.assume, plugin.products)
        self.found = found = () if assumed else machine.devices(conf)
        self.suitable, self._product = _suitable(conf, plugin, found)
        self._config = config
        if machine.launches and not found:
            raise ResourceError(
                f"no {plugin.label} found: looked for {plugin.looked_for}; `rmlaunch plan` with the same words shows "
                "the launch without one"
            )
        # A mere plan takes nothing away from anybody.
        self._busy = machine.in_use(plugin, self.suitable, conf.share) if machine.launches else {}
        kept = machine.ledger.kept_devices(conf.kind)
        self._kept_first = sorted(self.suitable, key=lambda resource: resource.id not in kept)

    def device(self, wanted: int | None) -> Device:
        """Return the devices of a launch; `wanted` is their number if neither the config nor the model says it.

        Raises `ResourceError` if not enough of them are free.
        """
        conf, plugin, found = self._config.device, self.plugin, self.found
        what = f"{plugin.kind} {self._product}" if len(self.suitable) < len(found) else plugin.kind
        ids = _ids(self._config, what, self._kept_first, wanted, self._busy)
        first: Mapping[str, Any] = next((one.attributes for one in self.suitable if one.id == ids[0]), {})
        product = first.get("product") or self._product or (None if found else plugin.assumed_product)
        described = plugin.products.get(product or "") if self._product or not found else None
        return Device(
            kind=conf.kind,
            ids=ids,
            product=product,
            memory_bytes=first.get("memory_bytes") or described,
            assumed=not found,
            simulated=conf.sdk is not None and conf.sdk.simulated,
            env=plugin.visible_env(ids, found),
        )


def _suitable(
    conf: DeviceConf, plugin: DevicePlugin, found: Sequence[Resource]
) -> tuple[tuple[Resource, ...], str | None]:
    """Return those of `found` whose product is `device.assume`, and that product; all and None without the key.

    A device that does not tell its product counts as that one. Raises `ResourceError` if all have other products, and
    `ConfigError` for an unknown product.
    """
    if (said := conf.assume) is None:
        return tuple(found), None
    told = {one.id: one.attributes.get("product") for one in found}
    here = {name for name in told.values() if name}
    products = (*plugin.products, *sorted(here - plugin.products.keys()))
    product = _meant(said, products, here)
    if product is None:
        known = ", ".join(products) or "none; leave it out"
        raise ConfigError(f"device.assume={said!r} is no {plugin.label} that is known; known: {known}")
    fitting = tuple(one for one in found if told[one.id] in (None, product))
    if found and not fitting:
        has = ", ".join(f"{number} is {name!r}" for number, name in told.items())
        raise ResourceError(f"device.assume={product!r}, but this machine's {plugin.kind} are others: {has}")
    return fitting, product


def _ids(
    config: LaunchConfig, what: str, found: Sequence[Resource], wanted: int | None, in_use: Taken
) -> tuple[int, ...]:
    conf = config.device
    published = config.model.build.get(conf.kind, {}).get("num_devices")
    count = conf.count or (len(conf.ids) if conf.ids else wanted or published) or 1
    if not found:
        return tuple(conf.ids or range(count))
    return choose(what, found, in_use, count, conf.ids)


def _meant(said: str | None, products: Iterable[str], here: Collection[str] = ()) -> str | None:
    """Return the one of `products` that `said` names, in full or shortened (RTX3090); None if there is none.

    If several fit, it is the one that this machine has, if that is one.
    """
    plain = {name: name.replace(" ", "").replace("-", "").lower() for name in products}
    if said is None or said in plain:
        return said
    asked = said.replace(" ", "").replace("-", "").lower()
    near = [name for name, word in plain.items() if asked and word.endswith(asked)]
    near = near or [name for name, word in plain.items() if asked and asked in word]
    near = near if len(near) == 1 else [name for name in near if name in here]
    return near[0] if len(near) == 1 else None


def choose(
    kind: str, found: Sequence[Resource], in_use: Taken, count: int, ids: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return `ids`, or the first `count` free devices, of one group if they tell their groups (RBLN's RSD groups).

    Raises `ResourceError` that names who uses which.
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
        raise ResourceError(f"device.count={count}: no group of {kind} has that many free; {_by_group(free, group)}")
    raise ResourceError(
        f"device.count={count}: of this machine's {kind} {have}, {_by_whom(have, in_use)}; stop that, or set "
        "device.share=true"
    )


def _check_given(kind: str, ids: Sequence[int], in_use: Taken, group: Mapping[int, object]) -> None:
    if busy := [number for number in ids if number in in_use]:
        raise ResourceError(
            f"device.ids={list(ids)}: of this machine's {kind}, {_by_whom(busy, in_use)}; choose others, stop that, "
            "or set device.share=true"
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
