"""Hardware that somebody else runs: what engine=remote is asked over the network."""

from __future__ import annotations

from typing import ClassVar

from launcher.devices.base import DevicePlugin, Resource


class Remote(DevicePlugin):
    kind = "remote"
    label = "remote server"
    looked_for: ClassVar[str] = "nothing: the server is not on this machine"
    note: ClassVar[str] = "what it runs on is not known here"
    shared = True

    def detect(self) -> tuple[Resource, ...]:
        return (Resource(0, self.kind),)
