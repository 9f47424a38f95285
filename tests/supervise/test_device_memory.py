"""What an engine took of a device's memory is back before it is said to be stopped. The devices are made up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from launcher.devices.base import GIB, Resource
from launcher.supervise.device_memory import DeviceMemory


class Machine:
    """With GPUs 0 and 1; what is set here is what `detect` finds."""

    def __init__(self, **attributes: Any) -> None:
        self.first: Mapping[str, Any] = attributes
        self.second: Mapping[str, Any] = {"used_bytes": GIB}

    def detect(self) -> Sequence[Resource]:
        return (Resource(0, "gpu", self.first), Resource(1, "gpu", self.second))


def test_memory_that_does_not_come_back_is_named_with_its_device() -> None:
    machine = Machine(used_bytes=GIB)
    memory = DeviceMemory(machine.detect, (0,))
    machine.first = {"used_bytes": 3 * GIB}

    assert memory.not_back(0.1) == ("2048 MiB more of the memory of gpu 0 than before the start",)


def test_drivers_take_a_moment_to_free_it() -> None:
    began = time.monotonic()

    class Slow(Machine):
        def detect(self) -> Sequence[Resource]:
            used = 3 * GIB if time.monotonic() < began + 0.2 else GIB
            return (Resource(0, "gpu", {"used_bytes": used}),)

    assert DeviceMemory(Slow().detect, (0,), {"gpu 0": GIB}).not_back(5.0) == ()
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("case", "after"),
    [
        ("a little more is the driver's", {"used_bytes": GIB + (10 << 20)}),
        ("another process has it", {"used_bytes": 5 * GIB, "holders": {4711: 4 * GIB}}),
        ("the device has stopped telling", {}),
    ],
)
def test_what_is_not_the_engines_does_not_count(case: str, after: Mapping[str, Any]) -> None:
    machine = Machine(used_bytes=GIB)
    memory = DeviceMemory(machine.detect, (0,))
    machine.first = after

    assert memory.not_back(0.0) == (), case


def test_another_deployments_device_is_not_looked_at() -> None:
    machine = Machine(used_bytes=GIB)
    memory = DeviceMemory(machine.detect, (0,))
    machine.second = {"used_bytes": 8 * GIB}

    assert memory.not_back(0.0) == ()


def test_nothing_is_claimed_of_a_device_that_does_not_tell() -> None:
    machine = Machine(product="RBLN-CA25")
    memory = DeviceMemory(machine.detect, (0,))
    machine.first = {"used_bytes": 8 * GIB}

    assert memory.not_back(0.0) == ()
