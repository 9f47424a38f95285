"""Devices that a config describes (`device.sdk`): found by their nodes, or simulated."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from launcher.devices.base import DevicePlugin, Resource


class Declared(DevicePlugin):
    """The plugin of a described device. A subclass has the description's values; this class itself finds nothing."""

    kind: ClassVar[str] = "npu"
    label: ClassVar[str] = "declared device"
    looked_for: ClassVar[str] = "nothing"
    node_pattern: ClassVar[str | None] = None  #: such as /dev/acme*; None if a program simulates the device
    visible_variable: ClassVar[str | None] = None
    env: ClassVar[Mapping[str, str]] = {}
    simulated_count: ClassVar[int] = 0

    def detect(self) -> tuple[Resource, ...]:
        """Return a device for each node that matches `node_pattern`; if that is None, the simulated ones."""
        attributes: dict[str, Any] = {"label": self.label}
        if len(self.products) == 1:  # nodes do not say which product they are
            ((product, memory),) = self.products.items()
            attributes |= {"product": product, **({"memory_bytes": memory} if memory else {})}
        if self.node_pattern is None:
            numbers, tags = list(range(self.simulated_count)), frozenset({"simulated"})
        else:
            numbers, tags = sorted(_numbers(self.node_pattern)), frozenset[str]()
        return tuple(Resource(number, self.kind, attributes, tags) for number in numbers)

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:  # noqa: ARG002
        """Return `env`, and `ids` joined by commas in the variable that the config names, if any."""
        variable = self.visible_variable
        return {**self.env, **({variable: ",".join(map(str, ids))} if variable else {})}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Return `node_pattern` with the number in place of its `*`, for each of `ids`; () without a pattern."""
        pattern = self.node_pattern
        return tuple(pattern.replace("*", str(number), 1) for number in ids) if pattern else ()


def _numbers(pattern: str) -> set[int]:
    before, after = map(re.escape, pattern.split("*"))
    names = (re.fullmatch(rf"{before}(\d+){after}", name) for name in glob.glob(pattern))  # noqa: PTH207  (absolute)
    return {int(match[1]) for match in names if match}
