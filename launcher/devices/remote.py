"""Hardware that somebody else runs, which engine=remote asks over the network."""

from __future__ import annotations

from typing import ClassVar

from launcher.devices.base import DevicePlugin, Resource


class Remote(DevicePlugin):
    """The unknown hardware of a server elsewhere; deployments share it."""

    kind = "remote"
    label = "remote server"
    looked_for: ClassVar[str] = "nothing: the server is not on this machine"
    note: ClassVar[str] = "what it runs on is not known here"
    shared = True

    def detect(self) -> tuple[Resource, ...]:
        """Return the one device that stands for the server."""
        return (Resource(0, self.kind),)
