"""The contract of a device plugin: what this machine has of one kind, and how an engine is shown only its share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from engines.base import ContainerSettings
from launcher.devices.host import within

GIB = 1024**3

#: what looking at one kind of device may take, however broken its driver is
LOOK_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Resource:
    """One device that was found. What is not known is left out of `attributes`:

    product, vendor, uuid, serial, pci, numa (node), status, group (of devices that work together), cores
    memory_bytes, used_bytes (never of a processor: its memory is everybody's), available_bytes (of a processor)
    holders: pid → bytes, 0 where it is not said how many
    driver, firmware: versions
    """

    id: int
    type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


def known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are."""
    return {key: value for key, value in attributes.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is there and does not work as it should: a device without its driver, a tool that fails."""

    what: str
    remedy: str
    blocks: bool = True  #: a device is there that is no `Resource`, for it cannot be used; False for a mere note


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at everything of a kind."""

    resources: tuple[Resource, ...] = ()
    problems: tuple[Problem, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  #: driver, and the vendor's tools by their names


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine's program would meet."""

    env: Mapping[str, str]  #: the variables that it would see
    packages: Mapping[str, str]  #: of its environment, name → version, as far as known
    versions: Mapping[str, str]  #: of the survey


@dataclass(frozen=True, slots=True)
class Portal:
    """Where a package is had that no public index has."""

    index: str  #: its URL; a password for its host in uv's or pip's settings or in ~/.netrc is an account
    words: str  #: "Rebellions' portal, which needs an account"


@dataclass(frozen=True, slots=True)
class Capability:
    """What one kind of device is good for; None where there is no limit, or none is published."""

    max_batch_size: int | None = None
    max_seq_len: int | None = None  #: tokens
    support_kv_cache: bool = True
    support_streaming: bool = True
    dtype: tuple[str, ...] = ()  #: it computes in, by torch's names
    optimized_for: tuple[str, ...] = ()  #: of latency, throughput, memory and energy: what its vendor makes it for


class DevicePlugin(ABC):
    kind: ClassVar[str]
    label: ClassVar[str]  #: what people call one of them
    looked_for: ClassVar[str]  #: what detect() looks at, in words for an error message
    products: ClassVar[Mapping[str, int]] = {}  #: product → bytes of memory of one device
    assumed_product: ClassVar[str | None] = None  #: what a plan describes when nothing was found or said
    portals: ClassVar[Mapping[str, Portal]] = {}  #: by package
    note: ClassVar[str] = ""  #: what everybody who has one should know
    shared: ClassVar[bool] = False  #: any number of deployments may have it

    @abstractmethod
    def detect(self) -> tuple[Resource, ...]:
        """Every device of this kind, lowest id first. Never raises, never hangs; () where there is none."""

    def survey(self) -> Survey:
        """The same with what is there and cannot be used, and the versions. Never raises, never hangs; it may run the
        vendor's tools."""
        return Survey(self.detect())

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:  # noqa: ARG002
        """The variables that make an engine see only `ids`; `found` is what `detect` returned, () in a mere plan."""
        return {}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """The device nodes that a container needs for `ids`."""
        return ()

    def container(self, ids: tuple[int, ...], found: Sequence[Resource]) -> ContainerSettings:
        """What a container needs for `ids`; `found` as for `visible_env`. Pure."""
        return ContainerSettings(nodes=self.nodes(ids), env=self.visible_env(ids, found))

    def mismatches(self, around: Surroundings) -> Sequence[Problem]:  # noqa: ARG002
        """What does not go together of what an engine on such a device would have around it. Pure."""
        return ()

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """What `product` is good for, or the kind as such. Pure."""
        return Capability()


class HostDevices(DevicePlugin):
    """A plugin that reads files below `root` (a test's own tree, or /) and asks vendors' tools and libraries."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def detect(self) -> tuple[Resource, ...]:
        return self._bounded(self._look).resources

    def survey(self) -> Survey:
        return self._bounded(self._look_thoroughly)

    @abstractmethod
    def _look(self) -> Survey:
        """What is found; called in a thread that nobody waits for longer than `LOOK_LIMIT_S`."""

    def _unusable(self, found: Survey) -> Sequence[Problem]:  # noqa: ARG002
        """What is there beside `found` and cannot be used, such as cards without a driver."""
        return ()

    def _look_thoroughly(self) -> Survey:
        found = self._look()
        return replace(found, problems=(*found.problems, *self._unusable(found)))

    def _bounded(self, look: Any) -> Survey:
        found, why = within(LOOK_LIMIT_S, look)
        if isinstance(found, Survey):
            return found
        what = f"could not look for {self.kind} devices: {why}"
        return Survey(problems=(Problem(what, "look at the kernel's log and the driver's own tools", blocks=False),))
