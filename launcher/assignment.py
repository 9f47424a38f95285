"""Which of the devices that were found a deployment gets: free ones, and of one group where they have groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.base import ResourceError
from launcher.devices.base import Resource

#: id → by whom, in words
Taken = Mapping[int, str]


def taken(found: Sequence[Resource], held: Mapping[int, str]) -> Taken:
    """The devices that are in use: by our deployments, as the ledger has it (`held`), or by who has memory of them."""
    words = {
        resource.id: f"pid {', '.join(map(str, holders))}"
        for resource in found
        if (holders := sorted(resource.attributes.get("holders", ())))
    }
    return words | {number: f"deployment {name!r}" for number, name in held.items()}


def choose(
    kind: str, found: Sequence[Resource], in_use: Taken, count: int, ids: Sequence[int] | None = None
) -> tuple[int, ...]:
    """`ids`, or the first `count` devices that are free, of one group if they tell their groups (RBLN's RSD groups).

    Raises `ResourceError` that names who has what.
    """
    have = [resource.id for resource in found]
    if missing := sorted(set(ids or ()) - set(have)):
        raise ResourceError(f"device.ids={list(ids or ())}: this machine has no {kind} {missing}; it has {have}")
    if count > len(have):
        raise ResourceError(f"device.count={count}: this machine has {len(have)} of {kind}; it has {have}")
    group = {resource.id: resource.attributes.get("group") for resource in found}
    if ids:
        _check_given(kind, ids, in_use, group)
        return tuple(ids)
    free = [number for number in have if number not in in_use]
    for name in dict.fromkeys(group[number] for number in free):
        if len(fit := [number for number in free if group[number] == name]) >= count:
            return tuple(fit[:count])
    if len(free) >= count:
        raise ResourceError(f"device.count={count}: no group of {kind} has as many free; {_by_group(free, group)}")
    raise ResourceError(
        f"device.count={count}: of {kind} {have}, {_by_whom(have, in_use)}; stop that, or set device.share=true"
    )


def _check_given(kind: str, ids: Sequence[int], in_use: Taken, group: Mapping[int, object]) -> None:
    if busy := [number for number in ids if number in in_use]:
        raise ResourceError(
            f"device.ids={list(ids)}: of {kind}, {_by_whom(busy, in_use)}; choose others, stop that, or set "
            "device.share=true"
        )
    if len({group[number] for number in ids}) > 1:
        raise ResourceError(
            f"device.ids={list(ids)}: a deployment needs devices of one group of {kind}; {_by_group(ids, group)}"
        )


def _by_whom(ids: Sequence[int], in_use: Taken) -> str:
    return ", ".join(f"{number} is in use by {in_use[number]}" for number in ids if number in in_use)


def _by_group(ids: Sequence[int], group: Mapping[int, object]) -> str:
    names = dict.fromkeys(group[number] for number in ids)
    return ", ".join(f"group {name} has {[number for number in ids if group[number] == name]}" for name in names)
