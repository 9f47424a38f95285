"""Furiosa NPUs and UPMEM ranks in made-up trees: nobody has run this against either."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ContainerSettings
from launcher.config.schema import EnvironmentConf
from launcher.devices.base import GIB, Problem, Resource, Survey
from launcher.devices.furiosa import Furiosa
from launcher.devices.pim import Pim
from launcher.paths import cache_root
from launcher.planning import environments
from launcher.prepare.environments import ensure
from launcher.progress import Progress
from tests.devices.trees import pci, write

CARD = {"product": "RNGD", "memory_bytes": 48 * GIB}


def test_cards_are_found_by_the_nodes_of_their_driver(tmp_path: Path) -> None:
    names = ("npu0mgmt", "npu0pe0", "npu0pe0-3", "npu0ch0", "npu2mgmt", "npu10mgmt")
    write(tmp_path, {f"dev/rngd/{name}": "" for name in names})

    assert Furiosa(tmp_path).survey() == Survey(
        tuple(Resource(number, "furiosa", CARD, frozenset({"RNGD"})) for number in (0, 2, 10))
    )
    assert Furiosa().nodes((0,)) == ("/dev/rngd",)


def test_what_sysfs_says(tmp_path: Path) -> None:
    place = "sys/class/rngd_mgmt/rngd!npu0mgmt"
    files = {"device_uuid": "A76AAD68\n", "device_sn": "RNGD1\n", "busname": "0000:51:00.0\n", "fw_version": "1.6.0\n"}
    write(tmp_path, {"dev/rngd/npu0mgmt": "", **{f"{place}/{name}": said for name, said in files.items()}})
    status = "dram_capacity: 0xc00000000\ndram_usage: 0x40000000\nshared_capacity: 0x0\n"
    write(tmp_path, {f"{place}/version": "1.9.2\n", "sys/class/rngd_pe/rngd!npu0pe0/alloc_status": status})
    survey = Furiosa(tmp_path).survey()

    assert survey.versions == {"driver": "1.9.2"}
    assert survey.resources[0].attributes == {
        "product": "RNGD",
        "memory_bytes": 48 * GIB,
        "used_bytes": GIB,
        "uuid": "A76AAD68",
        "serial": "RNGD1",
        "pci": "0000:51:00.0",
        "firmware": "1.6.0",
        "driver": "1.9.2",
    }


class Device:
    """As furiosa_smi 2026.4 shows a card."""

    def device_name(self) -> str:
        return "npu0"

    def uuid(self) -> str:
        return "A76AAD68"

    def core_num(self) -> int:
        return 8

    def numa_node(self) -> int:
        return 1

    def core_status(self) -> dict[int, str]:
        return {0: "CoreStatus.Available", 1: "CoreStatus.Occupied"}

    def bdf(self) -> str:
        raise RuntimeError("not supported")


@pytest.mark.parametrize("name", ["furiosa_smi", "furiosa_smi_py"])
def test_what_the_vendors_library_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up; the older one must be initialised, and keeps the names in a part of its own."""
    called: list[str] = []
    older = SimpleNamespace(device_info=lambda: SimpleNamespace(name=Device().device_name, uuid=Device().uuid))
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.init = lambda: called.append("init")  # type: ignore[attr-defined]
    made.list_devices = lambda: [Device() if name == "furiosa_smi" else older]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, made)
    survey = Furiosa(write(tmp_path, {"dev/rngd/npu0mgmt": ""})).survey()
    more = {"numa": 1, "cores": 8, "status": "occupied"} if name == "furiosa_smi" else {}

    assert survey.resources[0].attributes == {**CARD, "uuid": "A76AAD68", **more}
    assert called == ([] if name == "furiosa_smi" else ["init"])
    assert survey.versions == {name: "unknown"}


def test_a_library_that_fails_is_told_and_the_cards_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("furiosa_smi")
    made.__spec__ = ModuleSpec("furiosa_smi", None)
    monkeypatch.setitem(sys.modules, "furiosa_smi", made)
    survey = Furiosa(write(tmp_path, {"dev/rngd/npu0mgmt": ""})).survey()

    assert [card.id for card in survey.resources] == [0]
    assert survey.problems[0].what.startswith("furiosa_smi cannot say anything of the Furiosa NPUs: ")


def test_a_card_without_its_driver_is_told(tmp_path: Path) -> None:
    pci(tmp_path, "0000:51:00.0", "1ed2", "0001")

    assert Furiosa(tmp_path).survey().problems == (
        Problem(
            "Furiosa NPU at 0000:51:00.0 is there, but its driver is not loaded: no /dev/rngd",
            "install FuriosaAI's driver and load it",
        ),
    )


def test_the_settings_of_a_container() -> None:
    assert Furiosa().container((0,), ()) == ContainerSettings(
        nodes=("/dev/rngd",),
        security=("seccomp=unconfined",),
        capabilities=("IPC_LOCK",),
        ulimits={"memlock": -1},
        ipc="host",
    )


#: prints what is found below the folder that is given, with the vendor's own library
LOOK = """
import sys
from pathlib import Path
from launcher.devices.furiosa import Furiosa
survey = Furiosa(Path(sys.argv[1])).survey()
print([card.id for card in survey.resources], [problem.what for problem in survey.problems], dict(survey.versions))
"""


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("requirement", "module"),
    [("furiosa-smi==2026.4.0", "furiosa_smi"), ("furiosa-smi-py==2026.1.2", "furiosa_smi_py")],
)
def test_the_vendors_real_libraries_without_an_npu(requirement: str, module: str, tmp_path: Path) -> None:
    """They start and list no card; the card of the node stays, with what sysfs says."""
    conf = EnvironmentConf(requirements=[requirement])
    environment = environments.describe("test-furiosa-smi", "managed", conf, cache_root())
    ensure(environment, Progress(quiet=True))
    write(tmp_path, {"dev/rngd/npu0mgmt": ""})
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [f"{environment.bin}/python", "-c", LOOK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=60)

    assert done.stdout == f"[0] [] {{{module!r}: {requirement.partition('==')[2]!r}}}\n"


FILES = st.sampled_from(["device_uuid", "device_sn", "busname", "fw_version", "version"])


@given(
    st.dictionaries(FILES, st.binary(max_size=40)), st.binary(max_size=40) | st.just(b"dram_capacity 0x dram_usage -1")
)
def test_whatever_sysfs_holds_nothing_is_raised(files: dict[str, bytes], status: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), {"dev/rngd/npu0mgmt": "", "sys/class/rngd_pe/rngd!npu0pe0/alloc_status": status})
        write(root, {f"sys/class/rngd_mgmt/rngd!npu0mgmt/{name}": said for name, said in files.items()})
        survey = Furiosa(root).survey()

    assert survey.problems == ()
    assert [card.id for card in survey.resources] == [0]


def test_ranks_of_upmem_with_what_their_region_says(tmp_path: Path) -> None:
    write(tmp_path, {"dev/dpu_rank0": "", "dev/dpu_rank12": "", "dev/dpu_region0": ""})
    region = {"nb_real_ci": "8\n", "nb_dpus_per_ci": "8\n", "mram_size": "67108864\n"}
    write(tmp_path, {f"sys/class/dpu_rank/dpu_rank0/device/{name}": said for name, said in region.items()})

    assert Pim(tmp_path).detect() == (
        Resource(0, "pim", {"product": "UPMEM rank", "cores": 64, "memory_bytes": 4 * GIB}),
        Resource(12, "pim", {"product": "UPMEM rank"}),
    )
    assert Pim().container((0, 12), ()).nodes == ("/dev/dpu_rank0", "/dev/dpu_rank12")
    assert not Pim().capability().support_kv_cache
