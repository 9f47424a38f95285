"""The memory of a deployment's devices: whether it has come back when the engine has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a supervisor imports this before it starts the engine
    from launcher.devices.base import Resource

_POLL_S = 0.05
#: what drivers keep for themselves comes and goes
_SLACK_BYTES = 64 << 20
_MIB = 1 << 20


class DeviceMemory:
    """Compares what is in use on the devices `ids` with what was in use before the engine was started.

    What living processes of others hold does not count, where the device tells. A device that does not say how much is
    in use is not looked at: nothing is claimed of it.
    """

    def __init__(
        self, detect: Callable[[], Sequence[Resource]], ids: Iterable[int], before: Mapping[str, int] | None = None
    ) -> None:
        """`before` is what somebody else has noted then; without it the engine must not have been started yet."""
        self._detect = detect
        self._ids = frozenset(ids)
        self.before = self._in_use() if before is None else before  #: bytes by device

    def not_back(self, deadline_s: float) -> tuple[str, ...]:
        """Wait until the memory is back, at most `deadline_s` seconds; return, in words, what is not.

        Drivers free it a moment after the process has ended.
        """
        deadline = time.monotonic() + deadline_s
        while self.before and (more := self._more()):
            if time.monotonic() > deadline:
                return more
            time.sleep(_POLL_S)
        return ()

    def _more(self) -> tuple[str, ...]:
        return tuple(
            f"{(now - before) // _MIB} MiB more of the memory of {name} than before the start"
            for name, now in self._in_use().items()
            if (before := self.before.get(name, now)) + _SLACK_BYTES < now
        )

    def _in_use(self) -> dict[str, int]:
        return {
            f"{resource.type} {resource.id}": resource.attributes["used_bytes"]
            - sum(resource.attributes.get("holders", {}).values())
            for resource in self._detect()
            if resource.id in self._ids and "used_bytes" in resource.attributes
        }
