"""The machine as planning sees it: devices, the ledger, Docker, libraries and variables."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

from launcher.config import declared_device
from launcher.config.schema import DeviceConf
from launcher.deployments.ledger import Ledger
from launcher.devices.base import DevicePlugin, Resource
from launcher.paths import state_root


class Machine:
    """Everything that `settle` and `resolve` may know of this machine; each thing is looked at once, when first needed.

    Looking at all of it ahead would cost a launch half a second that needs none of it: drivers, a daemon, libraries.
    The ledger is asked anew each time: a launch decides while it holds the ledger's lock.
    """

    def __init__(self, ledger: Ledger, *, launches: bool = False) -> None:
        """`launches`: what is missing or in use is an error; else it is assumed, and marked so."""
        self.ledger = ledger
        self.launches = launches
        self.variables: Mapping[str, str] = os.environ
        self._found: dict[str, tuple[Resource, ...]] = {}
        self._libraries: dict[str, bool] = {}
        self._docker: str | None = None

    def only_planning(self) -> Machine:
        """Return the same machine for a mere plan: nothing that was looked at is looked at again."""
        other = Machine(self.ledger)
        other._found, other._libraries, other._docker = self._found, self._libraries, self._docker
        return other

    def devices(self, conf: DeviceConf) -> tuple[Resource, ...]:
        """Return the devices of the kind that `conf` names or describes."""
        key = repr(conf) if conf.sdk else conf.kind
        if key not in self._found:
            self._found[key] = declared_device.plugin(conf).detect()
        return self._found[key]

    def in_use(self, plugin: DevicePlugin, found: Sequence[Resource], share: bool) -> Mapping[int, str]:
        """Return who has which of `found`, in words by id; none where they are everybody's or may be shared.

        In use are those of running deployments, by the ledger, and those that any process has memory of.
        """
        if share or plugin.shared:
            return {}
        return taken(found, self.ledger.held_devices(plugin.kind), self.ledger.is_replaced)

    def docker(self) -> str:
        """Return what Docker's daemon says of itself. Raises `AwayError` where none answers."""
        from launcher.runtimes import docker_daemon  # a launch that needs none would wait for it

        if self._docker is None:
            self._docker = docker_daemon.ping(docker_daemon.address())
        return self._docker

    def has_program(self, name: str) -> bool:
        """Return whether a program of that name or path can be run."""
        return shutil.which(name) is not None

    def has_library(self, name: str) -> bool:
        """Return whether the loader finds a shared library of that name or path."""
        if name not in self._libraries:
            try:
                ctypes.CDLL(name)
            except OSError:
                self._libraries[name] = False
            else:
                self._libraries[name] = True
        return self._libraries[name]


def this_machine(*, launches: bool = False, replacing: str | None = None) -> Machine:
    """Return the machine with the user's ledger; `replacing` is a deployment that ends before the launch begins."""
    return Machine(Ledger(state_root(), replacing), launches=launches)


def taken(
    found: Sequence[Resource], held: Mapping[int, str], is_replaced: Callable[[int], bool] = lambda _: False
) -> Mapping[int, str]:
    """Return who has which of `found`, in words by id: our deployments, as the ledger has it (`held`), or processes.

    `is_replaced` says of a process whether it ends before the launch begins.
    """
    words = {
        resource.id: f"pid {', '.join(map(str, holders))}"
        for resource in found
        if (holders := sorted(pid for pid in resource.attributes.get("holders", ()) if not is_replaced(pid)))
    }
    return words | {number: f"deployment {name!r}" for number, name in held.items()}
