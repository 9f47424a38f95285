"""RBLN NPUs in made-up trees with a made-up rbln-smi: nobody has run this against an NPU."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ContainerSettings
from launcher.devices import base, rbln_smi
from launcher.devices.base import GIB, Problem, Resource
from launcher.devices.rbln import Rbln
from tests.devices.trees import npu, pci, report, smi, write

TWO = {"dev/rbln0": "", "dev/rbln1": "", "dev/rsd0": ""}


@pytest.fixture(autouse=True)
def _no_tools_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/opt/rebellions/bin")


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert Rbln(tmp_path).survey() == base.Survey()


def test_what_the_tool_says_of_each_node(tmp_path: Path) -> None:
    context = {"npu": 1, "pid": 77, "memalloc": "1GiB"}
    smi(
        write(tmp_path, TWO),
        {
            "-g -j": report(
                npu(0), npu(1, memory={"used": "1073741824", "total": "16877879296"}, group_id="2"), contexts=[context]
            )
        },
    )
    survey = Rbln(tmp_path).survey()

    assert survey.problems == ()
    assert survey.versions == {"driver": "3.5.0", "firmware": "3.5.1"}
    first, second = survey.resources
    assert first == Resource(
        0,
        "rbln",
        {
            "product": "RBLN-CA25",
            "memory_bytes": 16877879296,
            "used_bytes": 0,
            "uuid": "3f9a1c2e-0000-4000-8000-000000000000",
            "serial": "0000000000225091",
            "status": "normal",
            "firmware": "3.5.1",
            "pci": "0000:50:00.0",
            "numa": 0,
            "group": 0,
            "driver": "3.5.0",
        },
        frozenset({"ATOM"}),
    )
    assert {key: second.attributes[key] for key in ("used_bytes", "holders", "group")} == {
        "used_bytes": GIB,
        "holders": {77: GIB},
        "group": 2,
    }


def test_devices_of_the_host_that_have_no_node_here_are_not_ours(tmp_path: Path) -> None:
    smi(write(tmp_path, {"dev/rbln1": "", "dev/rsd0": ""}), {"-g -j": report(npu(0), npu(1), npu(2))})
    write(tmp_path, {f"sys/class/rebellions/rbln{number}/status": "0\n" for number in range(3)})

    assert [resource.id for resource in Rbln(tmp_path).detect()] == [1]


def test_nodes_that_a_container_was_given_under_other_names_are_known_by_their_numbers(tmp_path: Path) -> None:
    """/dev/null stands for a character device: its numbers are those that sysfs has for the host's rbln3."""
    numbers = Path("/dev/null").stat().st_rdev
    smi(tmp_path, {"-g -j": report(npu(0), npu(3, name="RBLN-CA22"))})
    write(tmp_path, {"dev/rsd0": "", "sys/class/rebellions/rbln0/dev": "250:0\n"})
    write(tmp_path, {"sys/class/rebellions/rbln3/dev": f"{os.major(numbers)}:{os.minor(numbers)}\n"})
    (tmp_path / "dev/rbln0").symlink_to("/dev/null")
    (found,) = Rbln(tmp_path).detect()

    assert (found.id, found.attributes["product"]) == (0, "RBLN-CA22")


def test_an_older_tool_that_does_not_know_groups(tmp_path: Path) -> None:
    place = smi(write(tmp_path, TWO), {"-g -j": "error: unknown flag -g", "-j": report(npu(0), npu(1)), "code": "2"})

    assert [resource.attributes["product"] for resource in Rbln(tmp_path).detect()] == ["RBLN-CA25"] * 2
    assert (place / "calls").read_text().splitlines() == ["-g -j", "-j"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *[(folder.lstrip("/"), "rbln-smi") for folder in (*rbln_smi.FOLDERS, "/opt/rebellions/bin")],
        ("usr/bin", "rbln-stat"),
    ],
)
def test_the_tool_is_found_where_the_vendor_looks_for_it(folder: str, name: str, tmp_path: Path) -> None:
    smi(write(tmp_path, TWO), {"-g -j": report(npu(0))}, folder, name)

    assert Rbln(tmp_path).detect()[0].attributes["product"] == "RBLN-CA25"


def test_without_the_tool_sysfs_is_read_and_its_lack_is_told(tmp_path: Path) -> None:
    place = "sys/class/rebellions/rbln0"
    write(tmp_path, {"dev/rbln0": "", "dev/rsd0": "", f"{place}/status": "1\n", f"{place}/dram_used": "4096\n"})
    write(tmp_path, {f"{place}/kernel_version": "3.4.2\n", f"{place}/device/device": "0x1250\n"})
    survey = Rbln(tmp_path).survey()

    assert survey.resources[0].attributes == {
        "product": "RBLN-CA25",
        "memory_bytes": 16 * GIB,
        "used_bytes": 4096,
        "status": "busy",
        "driver": "3.4.2",
    }
    (problem,) = survey.problems
    assert problem.what.startswith("little is known of the RBLN NPUs: there is no rbln-smi (in /usr/bin, ")
    assert not problem.blocks


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"-g -j": report(npu(0))[:100], "-j": "", "code": "0"}, "rbln-smi -j said nothing that can be read"),
        ({"-g -j": "", "-j": "no driver\n\n", "code": "3"}, "exited 3 and said nothing that can be read: no driver"),
        ({"-g -j": b"\xff\xfe{\x00", "-j": b"\x1b[31m{", "code": "1"}, "can be read: [31m{"),
        ({"flood": ""}, "said more than 4 MiB"),
    ],
)
def test_a_tool_that_fails_is_told_and_the_nodes_stay(
    files: dict[str, str | bytes], words: str, tmp_path: Path
) -> None:
    smi(write(tmp_path, TWO), files)
    survey = Rbln(tmp_path).survey()

    assert [resource.id for resource in survey.resources] == [0, 1]
    assert [words in problem.what for problem in survey.problems] == [True]


def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rbln_smi, "_LIMIT_S", 0.2)
    mark = f"tool={tmp_path}"  # its children have it too
    monkeypatch.setenv(*mark.split("="))
    smi(write(tmp_path, TWO), {"hang": "", "-g -j": report(npu(0))})
    began = time.monotonic()
    survey = Rbln(tmp_path).survey()

    assert [resource.id for resource in survey.resources] == [0, 1]
    assert "did not end within" in survey.problems[0].what
    assert time.monotonic() - began < 10
    assert [place for place in Path("/proc").glob("[0-9]*/environ") if _holds(place, mark)] == []


def _holds(environ: Path, mark: str) -> bool:
    try:
        return mark.encode() in environ.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def test_a_look_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes stands for a file of a driver that hangs."""
    monkeypatch.setattr(base, "LOOK_LIMIT_S", 0.1)
    write(tmp_path, TWO)
    (tmp_path / "sys/class/rebellions/rbln0").mkdir(parents=True)
    os.mkfifo(tmp_path / "sys/class/rebellions/rbln0/dram_used")
    survey = Rbln(tmp_path).survey()
    (tmp_path / "sys/class/rebellions/rbln0/dram_used").write_text("")  # lets the reader go

    assert survey.resources == ()
    assert survey.problems[0].what == "could not look for rbln devices: no answer within 0.1 s"


def test_a_card_without_its_driver_is_told(tmp_path: Path) -> None:
    pci(tmp_path, "0000:51:00.0", "1eff", "1250")
    pci(tmp_path, "0000:52:00.0", "1eff", "ffff", driver="vfio-pci")
    pci(tmp_path, "0000:53:00.0", "1eff", "1250", sriov_numvfs="4\n")  # split: its virtual functions are the devices
    pci(tmp_path, "0000:54:00.0", "8086", "1250")

    assert Rbln(tmp_path).survey().problems == (
        Problem(
            "RBLN NPU at 0000:51:00.0 (RBLN-CA25) is there, but its driver is not loaded: no /dev/rbln*",
            "install Rebellions' driver and load it",
        ),
        Problem(
            "RBLN NPU at 0000:52:00.0 is there, but it is given to a virtual machine (driver vfio-pci)",
            "bind it to its vendor's driver",
        ),
    )
    assert Rbln(tmp_path).detect() == ()


def test_cards_of_the_host_are_told_only_where_no_node_is_here(tmp_path: Path) -> None:
    pci(tmp_path, "0000:51:00.0", "1eff", "1250", driver="rebellions")
    (problem,) = Rbln(tmp_path).survey().problems
    write(tmp_path, TWO)
    smi(tmp_path, {"-g -j": report(npu(0), npu(1))})

    assert problem.what == (
        "RBLN NPU at 0000:51:00.0 (RBLN-CA25) is there, but there is no /dev/rbln* (driver rebellions)"
    )
    assert Rbln(tmp_path).survey().problems == ()


def test_without_the_node_of_their_group_none_can_be_used(tmp_path: Path) -> None:
    pci(tmp_path, "0000:51:00.0", "1eff", "1250", driver="rebellions")
    smi(write(tmp_path, {"dev/rbln0": ""}), {"-g -j": report(npu(0))})
    survey = Rbln(tmp_path).survey()

    assert survey.resources == ()
    assert [problem.what for problem in survey.problems] == [
        "RBLN NPUs [0] are there, but no /dev/rsd0, without which their runtime counts none"
    ]


def test_a_node_that_this_user_may_not_open_is_none_of_ours(tmp_path: Path) -> None:
    """A link that leads nowhere stands for it: root, who may run the tests, may open everything else."""
    smi(write(tmp_path, {"dev/rbln1": "", "dev/rsd0": ""}), {"-g -j": report(npu(0), npu(1))})
    (tmp_path / "dev/rbln0").symlink_to("nowhere")
    survey = Rbln(tmp_path).survey()

    assert [resource.id for resource in survey.resources] == [1]
    assert [problem.what for problem in survey.problems] == ["/dev/rbln0 may not be opened by this user"]


def test_a_faulty_npu_is_told(tmp_path: Path) -> None:
    smi(write(tmp_path, TWO), {"-g -j": report(npu(0, status="fault"), npu(1))})
    (problem,) = Rbln(tmp_path).survey().problems

    assert (problem.what, problem.blocks) == ("RBLN NPU 0 says of itself: fault", False)


def test_the_settings_of_a_container() -> None:
    found = tuple(Resource(number, "rbln", {"group": 3}) for number in range(4))

    assert Rbln().container((2, 3), found) == ContainerSettings(
        nodes=("/dev/rbln2", "/dev/rbln3", "/dev/rsd3:/dev/rsd0"),
        cdi=("rebellions.ai/npu=2", "rebellions.ai/npu=3"),
        mounts=("/usr/bin/rbln-smi:/usr/bin/rbln-smi:ro",),
        capabilities=("IPC_LOCK",),
        ulimits={"memlock": -1},
        sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},
        ipc="host",
        env={"RBLN_VISIBLE_DEVICES": "0,1"},
    )
    assert Rbln().container((1,), ()).nodes == ("/dev/rbln1", "/dev/rsd0")


NAMES = st.sampled_from(["rbln0", "rbln1", "rbln²", "rbln00", "rbln-1", "rblnx", "rsd0", "rbln99999999999999999999"])
FILES = st.sampled_from(["status", "dram_used", "kernel_version", "device/device", "dev"])
TREE = st.fixed_dictionaries(
    {
        "nodes": st.lists(NAMES, unique=True),
        "sysfs": st.dictionaries(st.tuples(NAMES, FILES), st.binary(max_size=40) | st.from_regex(rb"[0-9]{1,20}\n")),
    }
)


@given(TREE)
def test_whatever_sysfs_holds_nothing_is_raised(tree: dict[str, dict[tuple[str, str], bytes] | list[str]]) -> None:
    nodes, sysfs = tree["nodes"], tree["sysfs"]
    assert isinstance(sysfs, dict)
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), {f"dev/{name}": "" for name in nodes if isinstance(name, str)})
        write(root, {f"sys/class/rebellions/{name}/{file}": said for (name, file), said in sysfs.items()})
        survey = Rbln(root).survey()

    assert not [problem for problem in survey.problems if problem.what.startswith("could not look")]
    ours = [number for number in (0, 1) if f"rbln{number}" in nodes] if "rsd0" in nodes else []
    assert [one.id for one in survey.resources] == ours
