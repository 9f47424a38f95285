"""Rebellions' SDK as data: names that change from release to release, and what the compiler allows on each chip.

The vendor's packages and pages are the source; nobody has run any of it on an NPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from engines.errors import PlanError


@dataclass(frozen=True, slots=True)
class Sdk:
    """One release of the SDK; rebel-compiler, optimum-rbln, torch-rbln and vllm-rbln share its number."""

    release: tuple[int, int]
    visible_devices: str  #: the variable that says which devices a process may use
    devices_per_rank: str | None  #: vllm-rbln's variable for the NPUs of one rank; None where it is an engine argument
    num_devices: str  #: optimum-rbln's name for the NPUs that a model is compiled for


#: oldest first. Up to 0.11 the runtime prefers RBLN_DEVICES to the new name; 0.12's vllm-rbln takes it out again.
SDKS = (
    Sdk((0, 10), "RBLN_DEVICES", "VLLM_RBLN_TP_SIZE", "tensor_parallel_size"),
    Sdk((0, 11), "RBLN_DEVICES", "VLLM_RBLN_NUM_DEVICES_PER_LOCAL_RANK", "num_devices"),
    Sdk((0, 12), "RBLN_VISIBLE_DEVICES", None, "num_devices"),
)
NEWEST = SDKS[-1]

_PINNED = re.compile(r"(?:rebel-compiler|(?:vllm|optimum|torch)-rbln)(?:\[[^]]*])?\s*==\s*(\d+)\.(\d+)")


def sdk(requirements: Iterable[str]) -> Sdk:
    """Return the release that `requirements` pin: its row, or the row before it; the newest if nothing is pinned."""
    for requirement in requirements:
        if pinned := _PINNED.match(requirement):
            release = (int(pinned[1]), int(pinned[2]))
            return next((row for row in reversed(SDKS) if row.release <= release), SDKS[0])
    return NEWEST


@dataclass(frozen=True, slots=True)
class Chip:
    """The compiler's limits on one family of NPUs, in tokens (`AttentionLimits` of optimum-rbln 0.12)."""

    name: str
    prefix: str  #: the beginning of the family's product names
    max_eager: int  #: the longest context of eager attention
    max_partition: int  #: the largest partition of flash attention, which splits the context into equal ones
    default_partition: int
    prefill_chunk: int
    min_partition: int = 1024

    def partition(self, length: int) -> int | None:
        """Return the largest partition, up to the default, of which `length` has two or more; None for none."""
        size = self.default_partition
        while size >= self.min_partition:
            if length % size == 0 and length >= 2 * size:
                return size
            size //= 2
        return None

    def block_size(self, length: int, said: str) -> int:
        """Return the block that decides on the attention for `length`, which `said` puts in words.

        A block as long as the context means eager attention, which the chip can do up to a limit; a shorter one means
        flash attention. Raises `PlanError` if neither can be.
        """
        if length <= self.max_eager:
            return length
        if partition := self.partition(length):
            return partition
        raise PlanError(
            f"{said} is beyond the {self.max_eager} of eager attention on {self.name}, and no multiple of "
            f"{self.min_partition} as flash attention needs; change it"
        )


ATOM = Chip("ATOM", "RBLN-CA", 32768, 32768, 16384, 128)
REBEL = Chip("REBEL", "RBLN-CR", 16384, 16384, 8192, 512)


def chip(product: str | None) -> Chip:
    """Return the family of `product`; ATOM, with the wider limits, if none is known, as in optimum-rbln."""
    return REBEL if (product or "").startswith(REBEL.prefix) else ATOM
