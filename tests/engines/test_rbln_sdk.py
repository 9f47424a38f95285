"""Rebellions' SDK as data."""

from __future__ import annotations

import pytest

from engines.base import PlanError
from engines.rbln_sdk import ATOM, NEWEST, REBEL, SDKS, chip, sdk


@pytest.mark.parametrize(
    ("requirements", "release"),
    [
        (["vllm-rbln==0.12.0", "optimum-rbln==0.12.0"], (0, 12)),
        (["torch==2.9.0", "rebel-compiler==0.11.2"], (0, 11)),
        (["vllm-rbln[kv-connectors] == 0.10.4"], (0, 10)),
        (["rebel-compiler==0.8.1"], (0, 10)),  # before the first row: as that one
        (["rebel-compiler==1.0.0"], (0, 12)),  # after the last: as that one
        (["rebel-compiler>=0.10"], (0, 12)),  # not pinned
        ([], (0, 12)),
    ],
)
def test_the_release_is_the_one_that_is_pinned(requirements: list[str], release: tuple[int, int]) -> None:
    assert sdk(requirements).release == release


def test_the_rows_are_in_order_and_the_last_is_the_newest() -> None:
    assert sorted(SDKS, key=lambda row: row.release) == list(SDKS)
    assert SDKS[-1] is NEWEST
    assert [(row.visible_devices, row.devices_per_rank) for row in SDKS] == [
        ("RBLN_DEVICES", "VLLM_RBLN_TP_SIZE"),
        ("RBLN_DEVICES", "VLLM_RBLN_NUM_DEVICES_PER_LOCAL_RANK"),
        ("RBLN_VISIBLE_DEVICES", None),
    ]


@pytest.mark.parametrize(
    ("product", "family"), [("RBLN-CA12", ATOM), ("RBLN-CA25", ATOM), ("RBLN-CR03", REBEL), (None, ATOM)]
)
def test_the_family_is_told_by_the_product(product: str | None, family: object) -> None:
    assert chip(product) is family


@pytest.mark.parametrize(
    ("length", "atom", "rebel"),
    [
        (1000, 1000, 1000),
        (16384, 16384, 16384),
        (32768, 32768, 8192),
        (36864, 4096, 4096),
        (131072, 16384, 8192),
        (33792, 1024, 1024),
    ],
)
def test_a_block_is_the_context_as_far_as_eager_attention_goes_and_then_a_partition_of_it(
    length: int, atom: int, rebel: int
) -> None:
    assert (ATOM.block_size(length, "it"), REBEL.block_size(length, "it")) == (atom, rebel)


def test_a_length_that_no_attention_can_do_is_refused_with_the_limits() -> None:
    with pytest.raises(PlanError) as caught:
        ATOM.block_size(40000, "model.context_length=40000")

    assert str(caught.value) == (
        "model.context_length=40000 is beyond the 32768 of eager attention on ATOM, and no multiple of 1024 as flash "
        "attention needs; change it"
    )


@pytest.mark.parametrize(("length", "partition"), [(2048, 1024), (2047, None), (1024, None), (32768, 16384), (0, None)])
def test_a_partition_goes_into_the_length_twice_or_more(length: int, partition: int | None) -> None:
    assert ATOM.partition(length) == partition
