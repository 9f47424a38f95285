"""What control groups, cpusets and quotas leave of a processor, in made-up /proc and /sys trees."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.devices.base import GIB
from launcher.devices.cgroups import Limits, limits, numbers
from launcher.devices.cpu import Cpu
from tests.devices.trees import write

MACHINE = {
    "proc/meminfo": "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\n",
    "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-15\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some  Processor\nflags\t\t: sse avx2 amx_bf16\n\nflags\t: x\n",
    "sys/devices/system/node/node0/cpulist": "0-7",
    "sys/devices/system/node/node1/cpulist": "8-15",
}
V2 = "sys/fs/cgroup"


def attributes(root: Path) -> dict[str, Any]:
    (processor,) = Cpu(root).detect()
    return dict(processor.attributes)


def test_a_machine_without_limits(tmp_path: Path) -> None:
    (processor,) = Cpu(write(tmp_path, MACHINE)).detect()

    assert processor.attributes == {
        "model_name": "Some Processor",
        "cores": 16,
        "memory_bytes": 32 * GIB,
        "available_bytes": 16 * GIB,
        "numa_nodes": 2,
    }
    assert processor.tags == {"avx2", "amx_bf16"}


def test_version_2_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path, MACHINE | {"proc/self/cgroup": "0::/a.slice/b.scope\n", f"{V2}/cgroup.controllers": "cpu memory\n"})
    write(
        tmp_path,
        {
            f"{V2}/a.slice/memory.max": f"{8 * GIB}\n",
            f"{V2}/a.slice/memory.current": f"{6 * GIB}\n",
            f"{V2}/a.slice/memory.stat": f"anon 7\ninactive_file {2 * GIB}\nactive_file 3\n",
            f"{V2}/a.slice/cpu.max": "350000 100000\n",
            f"{V2}/a.slice/b.scope/memory.max": "max\n",
            f"{V2}/a.slice/b.scope/cpu.max": "max 100000\n",
            f"{V2}/a.slice/b.scope/cpuset.cpus.effective": "0-5,8\n",
        },
    )

    assert limits(tmp_path) == Limits(8 * GIB, 4 * GIB, 3.5, frozenset({0, 1, 2, 3, 4, 5, 8}))
    found = attributes(tmp_path)
    assert {key: found[key] for key in ("cores", "quota", "memory_bytes", "machine_bytes", "available_bytes")} == {
        "cores": 4,
        "quota": 3.5,
        "memory_bytes": 8 * GIB,
        "machine_bytes": 32 * GIB,
        "available_bytes": 4 * GIB,
    }


def test_version_2_inside_a_container_its_own_group_is_the_topmost(tmp_path: Path) -> None:
    write(tmp_path, MACHINE | {"proc/self/cgroup": "0::/\n", f"{V2}/cgroup.controllers": "cpu memory\n"})
    write(
        tmp_path, {f"{V2}/memory.max": f"{GIB}\n", f"{V2}/memory.current": "0\n", f"{V2}/cpuset.cpus.effective": "3\n"}
    )

    assert limits(tmp_path) == Limits(GIB, GIB, None, frozenset({3}))
    assert attributes(tmp_path)["cores"] == 1


def test_version_1_where_the_path_of_the_group_cannot_be_seen(tmp_path: Path) -> None:
    """As in a container of Docker's without a namespace for groups."""
    places = "9:memory:/docker/abc\n8:cpu,cpuacct:/docker/abc\n7:cpuset:/docker/abc\n0::/\n"
    write(tmp_path, MACHINE | {"proc/self/cgroup": places})
    write(
        tmp_path,
        {
            f"{V2}/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{V2}/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{V2}/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "200000\n",
            f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
            f"{V2}/cpuset/cpuset.cpus": "0-7\n",
        },
    )

    assert limits(tmp_path) == Limits(4 * GIB, 2 * GIB, 2.0, frozenset(range(8)))
    assert attributes(tmp_path)["cores"] == 2


def test_version_1_without_limits(tmp_path: Path) -> None:
    write(tmp_path, MACHINE | {"proc/self/cgroup": "9:memory:/\n8:cpu:/\n"})
    unlimited = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "5\n"}
    write(tmp_path, {f"{V2}/memory/{name}": said for name, said in unlimited.items()})
    write(tmp_path, {f"{V2}/cpu/cpu.cfs_quota_us": "-1\n", f"{V2}/cpu/cpu.cfs_period_us": "100000\n"})

    assert limits(tmp_path) == Limits()


def test_affinity_and_cpuset_count_together(tmp_path: Path) -> None:
    write(tmp_path, MACHINE | {"proc/self/status": "Cpus_allowed_list:\t4-9\n", "proc/self/cgroup": "0::/\n"})
    write(tmp_path, {f"{V2}/cgroup.controllers": "", f"{V2}/cpuset.cpus.effective": "0-5\n"})

    assert attributes(tmp_path)["cores"] == 2


def test_used_bytes_is_never_set() -> None:
    """The check after a stop compares it, and the memory of a machine is everybody's."""
    assert "used_bytes" not in attributes(Path("/"))


@pytest.mark.parametrize(
    ("said", "known"),
    [("0-2,5", {0, 1, 2, 5}), ("3", {3}), ("", set()), ("1-", set()), ("a", set()), ("0-99999999", set())],
)
def test_lists_of_numbers(said: str, known: set[int]) -> None:
    assert numbers(said) == known


FILES = st.sampled_from(
    [
        "proc/meminfo", "proc/self/status", "proc/cpuinfo", "proc/self/cgroup", f"{V2}/cgroup.controllers",
        f"{V2}/memory.max", f"{V2}/memory.current", f"{V2}/memory.stat", f"{V2}/cpu.max", f"{V2}/cpuset.cpus.effective",
        f"{V2}/memory/memory.limit_in_bytes", f"{V2}/cpu/cpu.cfs_quota_us", f"{V2}/cpu/cpu.cfs_period_us",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [b"max", b"0", b"-1", b"100000", b"0-3", b"MemTotal:", b"kB", b"Cpus_allowed_list:", b"0::/a/../b", b"\n", b" "]
)
SAID = st.binary(max_size=60) | st.lists(WORDS, max_size=8).map(b"".join)


@given(st.dictionaries(FILES, SAID))
def test_whatever_the_files_hold_there_is_one_processor(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        survey = Cpu(write(Path(folder), files)).survey()

    assert survey.problems == ()
    (processor,) = survey.resources
    assert processor.attributes["cores"] >= 1
    assert processor.attributes["memory_bytes"] >= 0
