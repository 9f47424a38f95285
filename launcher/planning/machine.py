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
    """The parts of this machine that `settle` and `resolve` may know; each is looked at once, when first needed.

    Looking at all of it ahead (drivers, a daemon, libraries) would cost half a second, even a launch that needs none.
    The ledger is asked anew each time: a launch decides while it holds the ledger's lock.
    """

    def __init__(self, ledger: Ledger, *, launches: bool = False) -> None:
        """Set `launches` for a launch: missing or used hardware is then an error; else it is assumed, and marked so."""
        self.ledger = ledger
        self.launches = launches
        self.variables: Mapping[str, str] = os.environ
        self._found: dict[str, tuple[Resource, ...]] = {}
        self._libraries: dict[str, bool] = {}
        self._docker: str | None = None

    def only_planning(self) -> Machine:
        """Return the same machine for a plan that is not launched; nothing is looked at a second time."""
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
        """Return the user of each used device out of `found`, in words by id; empty if they are shared or may be.

        A device is in use if the ledger has it for a running deployment, or if any process has memory of it.
        """
        if share or plugin.shared:
            return {}
        return taken(found, self.ledger.held_devices(plugin.kind), self.ledger.is_replaced)

    def docker(self) -> str:
        """Return the description that Docker's daemon gives of itself. Raises `AwayError` if none answers."""
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
    """Return the user of each used device, in words by id: a deployment of the ledger (`held`), or processes.

    `is_replaced` tells of a pid whether it ends before the launch begins.
    """
    words = {
        resource.id: f"pid {', '.join(map(str, holders))}"
        for resource in found
        if (holders := sorted(pid for pid in resource.attributes.get("holders", ()) if not is_replaced(pid)))
    }
    return words | {number: f"deployment {name!r}" for number, name in held.items()}
