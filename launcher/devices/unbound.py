"""Cards that the bus shows and nobody can use: without a driver, given to a virtual machine, or without their nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from launcher.devices.base import Problem
from launcher.devices.host import PciFunction


@dataclass(frozen=True, slots=True)
class Card:
    """The words for the cards of one vendor."""

    label: str  #: "RBLN NPU"
    nodes: str  #: "/dev/rbln*"
    install: str  #: what to do if the driver is missing
    product: Callable[[PciFunction], str | None] = lambda _: None


def unbound(card: Card, functions: Iterable[PciFunction], nodes_present: bool) -> Iterator[Problem]:
    """Yield why each of `functions` cannot be used.

    If some nodes are present, cards that have a driver are in somebody's use, ours or (in a container) the host's, and
    are no problem.
    """
    for function in functions:
        product = card.product(function)
        name = f"{card.label} at {function.address}{f' ({product})' if product else ''} is there, but"
        if function.driver is None:
            none = "" if nodes_present else f": no {card.nodes}"
            yield Problem(f"{name} its driver is not loaded{none}", card.install)
        elif function.driver == "vfio-pci":
            yield Problem(
                f"{name} it is given to a virtual machine (driver vfio-pci)", "bind it to its vendor's driver"
            )
        elif not nodes_present:
            yield Problem(
                f"{name} there is no {card.nodes} (driver {function.driver})",
                "in a container, hand the device nodes to it; else look at the kernel's log",
            )
