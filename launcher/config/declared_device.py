"""The device plugin that a config asks for: an installed one, or one made from `device.sdk`."""

from __future__ import annotations

from pathlib import PurePath
from typing import cast

from engines.base import ConfigError
from launcher import registry
from launcher.config.schema import DeviceConf
from launcher.config.sdk import SdkConf
from launcher.devices.base import GIB, DevicePlugin
from launcher.devices.declared import Declared


def plugin(conf: DeviceConf) -> DevicePlugin:
    """Return the plugin of `device.kind`, or the one that `device.sdk` describes. Raises `ConfigError`."""
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


def import_path(kind: str) -> str:
    """Return `module:class` of the plugin of `kind`, for a process that does not read the config.

    Empty for devices that everybody shares: their memory says nothing about one deployment.
    """
    if kind not in registry.names("device"):
        return f"{Declared.__module__}:{Declared.__name__}"
    return "" if registry.device(kind).shared else registry.import_path("device", kind)


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
        "node_pattern": sdk.nodes,
        "visible_variable": sdk.visible_variable,
        "env": sdk.env,
        "shared": sdk.nodes is None,  # simulated: there is nothing that only one can have
        "simulated_count": 0 if sdk.nodes else max(conf.ids) + 1 if conf.ids else conf.count or 1,
    }
    return cast(DevicePlugin, type("Described", (Declared,), values)())
