"""The contract of a device plugin: what this machine has of one kind, and how an engine is shown only its share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Resource:
    """One device that was found."""

    id: int
    type: str
    #: product, memory_bytes, used_bytes, holders (pid → bytes), …; what is not known is left out
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


class DevicePlugin(ABC):
    kind: ClassVar[str]
    label: ClassVar[str]  #: what people call one of them
    looked_for: ClassVar[str]  #: what detect() looks at, in words for an error message
    products: ClassVar[Mapping[str, int]] = {}  #: product → bytes of memory of one device
    assumed_product: ClassVar[str | None] = None  #: what a plan describes when nothing was found or said
    shared: ClassVar[bool] = False  #: any number of deployments may have it

    @abstractmethod
    def detect(self) -> tuple[Resource, ...]:
        """Every device of this kind, lowest id first. Never raises, never hangs; () where there is none."""

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:  # noqa: ARG002
        """The variables that make an engine see only `ids`; `found` is what `detect` returned, () in a mere plan."""
        return {}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """The device nodes that a container needs for `ids`."""
        return ()


def indexed_nodes(root: str, pattern: str) -> list[int]:
    """The numbers N of the nodes `root`/`pattern` with its `*` as a number, in order."""
    from pathlib import Path

    prefix, _, suffix = pattern.partition("*")
    names = (node.name for node in Path(root).glob(pattern))
    return sorted(int(number) for name in names if (number := name[len(prefix) : len(name) - len(suffix)]).isdigit())
