"""What `rbln-smi` and `rbln-stat` say, in the shapes that their readers accept. No NPU has said any of it here."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.devices.rbln_smi import Npu, Report, parse
from tests.devices.trees import npu, report

WHOLE = Npu(
    node="rbln0",
    number=0,
    product="RBLN-CA25",
    uuid="3f9a1c2e-0000-4000-8000-000000000000",
    serial="0000000000225091",
    status="normal",
    firmware="3.5.1",
    pci="0000:50:00.0",
    numa=0,
    group=0,
    used_bytes=0,
    memory_bytes=16877879296,
)


def parsed(said: str) -> Report:
    found = parse(said.encode())
    assert found is not None
    return found


def test_a_whole_report_is_read() -> None:
    assert parsed(report(npu(0))) == Report("3.5.0", {"rbln0": WHOLE})


@pytest.mark.parametrize(
    "changes",
    [
        {"npu": "0", "group_id": 0},  # SDK 1 wrote the number in words
        {"pci": {"dev": "1250", "bus_id": "0000:50:00.0", "numa_node": 0}},
        {"memory": {"used": 0, "total": 16877879296}},
        {"device": "/dev/rbln0"},
    ],
)
def test_numbers_come_as_such_and_in_words(changes: dict[str, object]) -> None:
    assert parsed(report(npu(0, **changes))).npus["rbln0"] == WHOLE


def test_what_is_not_said_is_not_known() -> None:
    said = '{"KMD_version": "2.1.0", "devices": [{"npu": "3"}, {"name": "RBLN-CA22", "sid": null, "device": "rbln4"}]}'

    assert parsed(said) == Report("2.1.0", {"rbln3": Npu("rbln3", 3), "rbln4": Npu("rbln4", None, product="RBLN-CA22")})


def test_a_uuid_of_zeros_names_nothing() -> None:
    zeros = npu(0, uuid="00000000-0000-0000-0000-000000000000")

    assert parsed(report(zeros)).npus["rbln0"].uuid is None


def test_memory_that_cannot_be_bytes_is_left_out() -> None:
    mebibytes = npu(0, memory={"used": "100", "total": "16096"})

    assert (
        parsed(report(mebibytes)).npus["rbln0"].memory_bytes,
        parsed(report(mebibytes)).npus["rbln0"].used_bytes,
    ) == (
        None,
        None,
    )


def test_processes_hold_memory_by_device() -> None:
    contexts = [
        {"ctx_id": "1", "npu": 1, "process": "python", "pid": "4242", "memalloc": "3.5GiB"},
        {"ctx_id": "2", "npu": "1", "cmd": "python", "pid": 4242, "memory": "72.0MiB"},
        {"ctx_id": "3", "npu": 0, "pid": 77, "memalloc": "?"},
        {"ctx_id": "4", "npu": 0, "pid": None},
        "what is this",
    ]
    npus = parsed(report(npu(0), npu(1), contexts=contexts)).npus

    assert npus["rbln1"].holders == {4242: 3584 * 2**20 + 72 * 2**20}
    assert npus["rbln0"].holders == {77: 0}


def test_a_process_on_a_number_that_two_devices_have_counts_on_both() -> None:
    # ATOM Max repeats the number once per card.
    contexts = [{"npu": 0, "pid": 77, "memalloc": "1GiB"}]
    npus = parsed(report(npu(0), npu(4, npu=0), contexts=contexts)).npus

    assert npus["rbln0"].holders == npus["rbln4"].holders == {77: 0}


def test_words_around_the_report_do_not_matter() -> None:
    assert parsed(f"warning: rbln-stat is deprecated\n{report(npu(0))}\nbye {{") == parsed(report(npu(0)))


WHOLE_TEXT = report(npu(0), npu(1), contexts=[{"npu": 0, "pid": 1, "memalloc": "1GiB"}])


@pytest.mark.parametrize("length", range(0, len(WHOLE_TEXT), 37))
def test_a_truncated_report_is_none(length: int) -> None:
    assert parse(WHOLE_TEXT[:length].encode()) is None


@pytest.mark.parametrize(
    "said", ["", "{}", "[]", "null", '{"devices": {}}', "{" * 100_000, "[" * 100_000, '{"a":' * 9999]
)
def test_what_is_no_report_is_none(said: str) -> None:
    assert parse(said.encode()) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["rbln0", "12GiB", "0", "-1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["npu", "device", "name", "uuid", "sid", "status", "fw_ver", "group_id", "pci", "memory", "util"]
DEVICE = st.dictionaries(
    st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(["used", "total", "bus_id"]), JSON)
)
CONTEXT = st.dictionaries(st.sampled_from(["npu", "pid", "memalloc", "memory", "ctx_id"]), JSON)
REPORT = st.fixed_dictionaries(
    {"devices": st.lists(DEVICE | JSON, max_size=5)},
    optional={"KMD_version": JSON, "contexts": st.lists(CONTEXT | JSON, max_size=5) | JSON},
)


def well_formed(found: Report) -> None:
    """What every reader of it relies on."""
    assert found.driver is None or found.driver.isprintable()
    for node, one in found.npus.items():
        assert node == one.node
        words = (one.node, one.product, one.uuid, one.serial, one.status, one.firmware, one.pci)
        for word in words:
            assert word is None or (word and word.isprintable() and "\n" not in word)
        for size in (
            one.number,
            one.numa,
            one.group,
            one.used_bytes,
            one.memory_bytes,
            *one.holders,
            *one.holders.values(),
        ):
            assert size is None or (type(size) is int and size >= 0)


@given(REPORT)
def test_any_values_under_the_known_keys_are_read_or_left_out(data: object) -> None:
    found = parse(json.dumps(data).encode())

    assert found is not None
    well_formed(found)


@given(st.binary(max_size=200) | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_are_a_report_or_none(said: bytes) -> None:
    if found := parse(said):
        well_formed(found)
