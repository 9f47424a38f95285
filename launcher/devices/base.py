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

#: seconds that a look at one kind of device may take, however broken its driver is
LOOK_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Resource:
    """One device that was found.

    `attributes` has these keys, without those whose values are unknown:

    product, vendor, uuid, serial, pci, numa (node), status, group (devices of one group work together), cores
    memory_bytes, used_bytes (not for a processor: its memory is everybody's), available_bytes (for a processor)
    holders: pid → bytes, 0 if the amount is unknown
    driver, firmware: versions
    """

    id: int
    type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


def known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `attributes` without those that are None."""
    return {key: value for key, value in attributes.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is there and does not work as it should: a device without its driver, a tool that fails."""

    what: str
    remedy: str
    blocks: bool = True  #: a device is there and cannot be used, so it is no `Resource`; False for a note


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at all devices of a kind."""

    resources: tuple[Resource, ...] = ()
    problems: tuple[Problem, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  #: "driver" or a vendor's tool → version


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The variables, packages and versions that an engine's program would meet."""

    env: Mapping[str, str]  #: the variables that it would see
    packages: Mapping[str, str]  #: packages of its environment, name → version, as far as known
    versions: Mapping[str, str]  #: `Survey.versions`


@dataclass(frozen=True, slots=True)
class Portal:
    """The vendor's own index for a package that no public index has."""

    index: str  #: its URL; a password for its host in uv's or pip's settings or in ~/.netrc counts as an account
    words: str  #: "Rebellions' portal, which needs an account"


@dataclass(frozen=True, slots=True)
class Capability:
    """The limits and strengths of one kind of device; a limit is None if there is none, or none is published."""

    max_batch_size: int | None = None
    max_seq_len: int | None = None  #: tokens
    support_kv_cache: bool = True
    support_streaming: bool = True
    dtype: tuple[str, ...] = ()  #: types that it computes in, by torch's names
    optimized_for: tuple[str, ...] = ()  #: the vendor's goals: latency, throughput, memory, energy


class DevicePlugin(ABC):
    """One kind of device: finds this machine's, and says what a program or a container needs to use some of them."""

    kind: ClassVar[str]
    label: ClassVar[str]  #: the name of one device in messages
    looked_for: ClassVar[str]  #: the places that detect() looks at, in words for an error message
    products: ClassVar[Mapping[str, int]] = {}  #: product → bytes of memory of one device
    assumed_product: ClassVar[str | None] = None  #: the product in a plan when none was found or named
    portals: ClassVar[Mapping[str, Portal]] = {}  #: package → where it is to be had
    note: ClassVar[str] = ""  #: a sentence for everybody who has such a device
    shared: ClassVar[bool] = False  #: any number of deployments may have it at the same time

    @abstractmethod
    def detect(self) -> tuple[Resource, ...]:
        """Return every device of this kind, lowest id first; () if there is none. Never raises, never hangs."""

    def survey(self) -> Survey:
        """Return the devices, a problem for each one that cannot be used, and the versions.

        Never raises, never hangs. May run the vendor's tools.
        """
        return Survey(self.detect())

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:  # noqa: ARG002
        """Return variables that make an engine see only `ids`; `found` is from `detect`, and () in a mere plan."""
        return {}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Return the device nodes that a container needs for `ids`."""
        return ()

    def container(self, ids: tuple[int, ...], found: Sequence[Resource]) -> ContainerSettings:
        """Return the settings that a container needs for `ids`; `found` as for `visible_env`. Pure."""
        return ContainerSettings(nodes=self.nodes(ids), env=self.visible_env(ids, found))

    def mismatches(self, around: Surroundings) -> Sequence[Problem]:  # noqa: ARG002
        """Return a problem for each variable, package or version in `around` that does not suit the device. Pure."""
        return ()

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the limits and strengths of `product`; None means the kind as such. Pure."""
        return Capability()


class HostDevices(DevicePlugin):
    """A plugin that reads files below `root` (a test's own tree, or /) and asks vendors' tools and libraries."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def detect(self) -> tuple[Resource, ...]:
        """Return the devices that `_look` finds; () if it fails or takes longer than `LOOK_LIMIT_S`."""
        return self._bounded(self._look).resources

    def survey(self) -> Survey:
        """Return what `_look` and `_unusable` find; one problem if that fails or takes longer than `LOOK_LIMIT_S`."""
        return self._bounded(self._look_thoroughly)

    @abstractmethod
    def _look(self) -> Survey:
        """Return what is found. Called in a thread that nobody waits for longer than `LOOK_LIMIT_S`."""

    def _unusable(self, found: Survey) -> Sequence[Problem]:  # noqa: ARG002
        """Return a problem for each device beside `found` that cannot be used, such as a card without a driver."""
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
