"""Devices that a config describes (`device.sdk`): found by their nodes, or simulated."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, cast

from engines.base import ConfigError
from launcher.devices.base import GIB, DevicePlugin, Resource

if TYPE_CHECKING:  # a supervisor imports this module too
    from launcher.adapters.conf import SdkConf
    from launcher.schema import DeviceConf


def plugin(conf: DeviceConf) -> DevicePlugin:
    """The plugin of `device.kind`, or what `device.sdk` says in its place. Raises `ConfigError`."""
    from launcher import registry

    sdk = conf.sdk
    if sdk is None:
        return registry.device(conf.kind)
    if sdk.nodes is None and not sdk.simulated:
        if conf.kind not in registry.names("device"):
            raise ConfigError(
                f"device.sdk.nodes is not set, and no plugin finds device.kind={conf.kind!r}; give the pattern of its "
                "device nodes, such as /dev/acme*"
            )
        return registry.device(conf.kind)
    return _described(conf, sdk)


def place(kind: str) -> str:
    """Where the class of the plugin of `kind` is, for a process that does not read the config; empty for devices that
    are everybody's, whose memory tells nothing of one deployment."""
    from launcher import registry

    if kind not in registry.names("device"):
        return f"{__name__}:Declared"
    return "" if registry.device(kind).shared else registry.place("device", kind)


class Declared(DevicePlugin):
    """What `device.sdk` describes; `_described` makes the class that has its values. Without them it finds nothing."""

    kind: ClassVar[str] = "npu"
    label: ClassVar[str] = "declared device"
    looked_for: ClassVar[str] = "nothing"
    sdk: ClassVar[SdkConf | None] = None
    simulated_count: ClassVar[int] = 0

    def detect(self) -> tuple[Resource, ...]:
        if self.sdk is None:
            return ()
        attributes: dict[str, Any] = {"label": self.label}
        if len(self.products) == 1:  # nodes do not say which product they are
            ((product, memory),) = self.products.items()
            attributes |= {"product": product, **({"memory_bytes": memory} if memory else {})}
        if self.sdk.nodes is None:
            numbers, tags = list(range(self.simulated_count)), frozenset({"simulated"})
        else:
            numbers, tags = sorted(_nodes(self.sdk.nodes)), frozenset[str]()
        return tuple(Resource(number, self.kind, attributes, tags) for number in numbers)

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:  # noqa: ARG002
        if self.sdk is None:
            return {}
        variable = self.sdk.visible_variable
        return {**self.sdk.env, **({variable: ",".join(map(str, ids))} if variable else {})}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        pattern = self.sdk.nodes if self.sdk else None
        return tuple(pattern.replace("*", str(number), 1) for number in ids) if pattern else ()


def _described(conf: DeviceConf, sdk: SdkConf) -> DevicePlugin:
    if sdk.nodes is not None and (sdk.nodes.count("*") != 1 or not PurePath(sdk.nodes).is_absolute()):
        raise ConfigError(
            f"device.sdk.nodes={sdk.nodes!r} must be a path with one * for the number, such as /dev/acme*"
        )
    values = {
        "kind": conf.kind,
        "label": sdk.label,
        "looked_for": f"device nodes {sdk.nodes}" if sdk.nodes else "nothing: it is simulated",
        "products": {product: int(gib * GIB) for product, gib in sdk.products.items()},
        "assumed_product": next(iter(sdk.products), None),
        "sdk": sdk,
        "shared": sdk.nodes is None,  # simulated: there is nothing that only one can have
        "simulated_count": max(conf.ids) + 1 if conf.ids else conf.count or 1,
    }
    return cast(DevicePlugin, type("Described", (Declared,), values)())


def _nodes(pattern: str) -> set[int]:
    before, after = map(re.escape, pattern.split("*"))
    names = (re.fullmatch(rf"{before}(\d+){after}", name) for name in glob.glob(pattern))  # noqa: PTH207  (absolute)
    return {int(match[1]) for match in names if match}
