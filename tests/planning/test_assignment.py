"""Who gets which device: nobody one that another has, and several of one group. The devices are made up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from engines.base import ResourceError
from launcher.devices.base import Resource
from launcher.planning.assignment import choose
from launcher.planning.machine import taken


def devices(*attributes: Mapping[str, Any]) -> tuple[Resource, ...]:
    return tuple(Resource(number, "gpu", given) for number, given in enumerate(attributes))


FOUR = devices({}, {}, {}, {})
GROUPED = devices({"group": "0"}, {"group": "0"}, {"group": "1"}, {"group": "1"}, {"group": "1"})


def test_the_first_free_ones_are_chosen() -> None:
    assert choose("gpu", FOUR, {}, 2) == (0, 1)
    assert choose("gpu", FOUR, {0: "deployment 'a'", 2: "pid 7"}, 2) == (1, 3)


def test_what_was_asked_for_is_what_is_given() -> None:
    assert choose("gpu", FOUR, {0: "deployment 'a'"}, 2, [3, 1]) == (3, 1)


def test_several_are_of_one_group() -> None:
    assert choose("rbln", GROUPED, {}, 3) == (2, 3, 4)
    assert choose("rbln", GROUPED, {0: "pid 7"}, 2) == (2, 3)
    assert choose("rbln", GROUPED, {}, 1) == (0,)


@pytest.mark.parametrize(
    ("words", "found", "in_use", "count", "ids"),
    [
        ("device.ids=[7]: this machine has no gpu [7]; it has [0, 1, 2, 3]", FOUR, {}, 1, [7]),
        ("device.count=5: this machine has 4 of gpu; it has [0, 1, 2, 3]", FOUR, {}, 5, None),
        ("device.ids=[1]: of gpu, 1 is in use by deployment 'a'; choose others, stop that, or set device.share=true",
         FOUR, {1: "deployment 'a'"}, 1, [1]),
        ("device.count=3: of gpu [0, 1, 2, 3], 0 is in use by a, 3 is in use by b; stop that, or set device.share=true",
         FOUR, {0: "a", 3: "b"}, 3, None),
        ("device.ids=[0, 2]: a deployment needs devices of one group of gpu; group 0 has [0], group 1 has [2]",
         GROUPED, {}, 2, [0, 2]),
        ("device.count=4: no group of gpu has as many free; group 0 has [0, 1], group 1 has [2, 3, 4]",
         GROUPED, {}, 4, None),
    ],
)  # fmt: skip
def test_a_refusal_says_who_has_what(
    words: str, found: tuple[Resource, ...], in_use: Mapping[int, str], count: int, ids: list[int] | None
) -> None:
    with pytest.raises(ResourceError, match=f"^{re.escape(words)}$"):
        choose("gpu", found, in_use, count, ids)


def test_a_foreign_process_counts_and_the_ledger_names_our_own() -> None:
    found = devices({"holders": {77: 5, 8: 0}}, {"holders": {}}, {"holders": {9: 1}}, {})

    assert taken(found, {2: "a", 3: "b"}) == {0: "pid 8, 77", 2: "deployment 'a'", 3: "deployment 'b'"}
    assert taken(found, {}, is_replaced={8, 9}.__contains__) == {0: "pid 77"}
