"""Who gets which device: nobody one that another has, and several of one group. The devices are made up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.base import ConfigError, Device, ResourceError
from launcher import registry
from launcher.deployments.ledger import Ledger
from launcher.devices.base import Resource
from launcher.planning.assignment import choose
from launcher.planning.machine import Machine, taken
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.serving.engine import launch


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
        (("device.ids=[1]: of this machine's gpu, 1 is in use by deployment 'a'; choose others, stop that, "
          "or set device.share=true"),
         FOUR, {1: "deployment 'a'"}, 1, [1]),
        (("device.count=3: of this machine's gpu [0, 1, 2, 3], 0 is in use by a, 3 is in use by b; stop that, "
          "or set device.share=true"),
         FOUR, {0: "a", 3: "b"}, 3, None),
        ("device.ids=[0, 2]: a deployment needs devices of one group of gpu; group 0 has [0], group 1 has [2]",
         GROUPED, {}, 2, [0, 2]),
        ("device.count=4: no group of gpu has that many free; group 0 has [0, 1], group 1 has [2, 3, 4]",
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


# ------------------------------------------------------------------------------------------------------ device.assume

#: kind → an engine for it, a product as it may be said, the same in full, and another that this machine may have
PRODUCTS = {
    "gpu": ("vllm", "H200", "NVIDIA H200", "NVIDIA L4"),
    "rbln": ("vllm", "RBLN-CA25", "RBLN-CA25", "RBLN-CA22"),
    "furiosa": ("furiosa", "RNGD", "RNGD", "RNGD-S"),
}


def given(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    has: Sequence[str | None],
    *words: str,
    plan: bool = False,
) -> Device:
    """What a launch on a machine that has these products gets of them."""
    found = tuple(Resource(number, kind, {"product": name} if name else {}) for number, name in enumerate(has))
    monkeypatch.setattr(type(registry.device(kind)), "detect", lambda _: found)
    machine = Machine(Ledger(tmp_path / "state"), launches=not plan)
    words = (f"engine={PRODUCTS[kind][0]}", f"device={kind}", "model=llama3-8b", "runtime=process", *words)
    return resolve(settle(words, machine).config, machine)[1].device


@pytest.mark.parametrize("key", ["assume", "product"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_launch_takes_devices_of_the_product_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, key: str
) -> None:
    _, said, product, other = PRODUCTS[kind]
    word = f"device.{key}={said}"

    device = given(monkeypatch, tmp_path, kind, [other, product, other, product], word, "device.count=2")
    assert (device.product, device.ids, device.assumed) == (product, (1, 3), False)
    with pytest.raises(
        ResourceError, match=rf"device\.count=3: this machine has 2 of {kind} {product}; it has \[1, 3\]"
    ):
        given(monkeypatch, tmp_path, kind, [other, product, other, product], word, "device.count=3")
    with pytest.raises(ResourceError, match=rf"this machine has no {kind} {product} \[0\]; it has \[1\]"):
        given(monkeypatch, tmp_path, kind, [other, product], word, "device.ids=[0]")
    with pytest.raises(
        ResourceError, match=f"^device.assume='{product}', but this machine's {kind} are others: 0 is '{other}'$"
    ):
        given(monkeypatch, tmp_path, kind, [other], word, "device.count=1")
    with pytest.raises(ResourceError, match="found: looked for"):
        given(monkeypatch, tmp_path, kind, [], word, "device.count=1")


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_plan_for_a_product_does_not_look_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    _, said, product, other = PRODUCTS[kind]
    word = f"device.assume={said}"

    device = given(monkeypatch, tmp_path, kind, [other], word, "device.count=4", plan=True)

    assert (device.product, device.ids, device.assumed) == (product, (0, 1, 2, 3), True)
    assert device.memory_bytes == registry.device(kind).products[product]


def test_a_device_that_does_not_tell_its_product_is_taken_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = given(monkeypatch, tmp_path, "rbln", [None], "device.assume=RBLN-CA22", "device.count=1", "fit=off")

    assert (device.product, device.memory_bytes, device.assumed) == ("RBLN-CA22", 16 << 30, False)


@pytest.mark.parametrize("plan", [True, False])
def test_a_product_that_only_this_machine_knows_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: bool
) -> None:
    device = given(monkeypatch, tmp_path, "gpu", ["NVIDIA L4", "NVIDIA Z9"], "device.assume=Z9", plan=plan)
    assert (device.product, device.ids, device.assumed) == ("NVIDIA Z9", (1,), False)
    with pytest.raises(
        ConfigError, match=r"device\.assume='Z8' is no GPU that is known; known: NVIDIA L4, .*NVIDIA Z9"
    ):
        given(monkeypatch, tmp_path, "gpu", ["NVIDIA Z9"], "device.assume=Z8", plan=plan)


@pytest.mark.parametrize(
    ("said", "has", "meant"),
    [
        ("H100", "NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),  # which the table of products lacks
        ("L40S", "NVIDIA L40S", "NVIDIA L40S"),
        ("L4", "NVIDIA L40S", None),
        ("NVIDIA L4", "NVIDIA L40S", None),
    ],
)
def test_a_name_may_be_shortened_but_never_means_another_product(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, has: str, meant: str | None
) -> None:
    if meant:
        assert given(monkeypatch, tmp_path, "gpu", [has], f"device.assume={said}", "fit=off").product == meant
    else:
        with pytest.raises(
            ResourceError, match=r"^device\.assume='NVIDIA L4', but this machine's gpu are others: 0 is 'NVIDIA L"
        ):
            given(monkeypatch, tmp_path, "gpu", [has], f"device.assume={said}", "fit=off")


def test_the_numbers_that_an_npu_is_shown_by_count_those_of_other_products_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has = ["RBLN-CA22", "RBLN-CA25"]
    device = given(monkeypatch, tmp_path, "rbln", has, "device.assume=RBLN-CA25", "device.count=1", "fit=off")

    assert device.env == {"RBLN_VISIBLE_DEVICES": "1"}


def test_what_is_available_is_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(registry.device("rbln")), "detect", lambda _: (Resource(0, "rbln", {"product": "RBLN-CA22"}),)
    )
    words = ("engine=vllm", "device=rbln", "model=llama3-8b")

    assert launch(*words).is_available()
    assert launch(*words, "device.assume=RBLN-CA22").is_available()
    assert not launch(*words, "device.assume=RBLN-CA25").is_available()
