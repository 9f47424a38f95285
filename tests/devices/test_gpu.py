"""GPUs as a made-up NVML and a made-up amdsmi show them: the machines of these tests have none."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines.base import ContainerSettings
from launcher.devices.base import GIB, Problem, Resource, Survey
from launcher.devices.gpu import Gpu
from tests.devices.trees import pci, write
from tests.fakes import nvml
from tests.fakes.nvml import Card


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With NVIDIA's driver loaded, and no scheduler that gave us a share."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return write(tmp_path, {"proc/driver/nvidia/version": "NVRM"})


def having(monkeypatch: pytest.MonkeyPatch, *cards: Card, **options: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml.module(cards, **options))


def test_without_a_driver_there_is_none(tmp_path: Path) -> None:
    assert Gpu(tmp_path).survey() == Survey()


def test_what_nvml_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card(processes={77: GIB, 78: None}))

    assert Gpu(root).survey() == Survey(
        (
            Resource(
                0,
                "gpu",
                {
                    "vendor": "nvidia",
                    "product": "NVIDIA H100 80GB HBM3",
                    "uuid": "GPU-00aa",
                    "memory_bytes": 80 * GIB,
                    "used_bytes": GIB,
                    "holders": {77: GIB, 78: 0},
                    "pci": "00000000:51:00.0",
                    "driver": "580.95.05",
                    "compute_capability": "9.0",
                },
                frozenset({"nvidia"}),
            ),
        ),
        (),
        {"driver": "580.95.05", "cuda": "13.1"},
    )


def test_an_nvml_that_knows_less_still_shows_the_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(
        monkeypatch, Card(), without=["nvmlDeviceGetMigMode", "nvmlDeviceGetPciInfo", "nvmlSystemGetCudaDriverVersion"]
    )

    assert "pci" not in Gpu(root).detect()[0].attributes


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount"])
def test_an_nvml_that_fails_is_told(broken: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card(), broken=broken)
    survey = Gpu(root).survey()

    assert survey.resources == ()
    assert f"{broken} failed" in survey.problems[0].what


def test_a_lost_gpu_does_not_hide_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card(), Card(lost=True), Card(uuid="GPU-22"))
    survey = Gpu(root).survey()

    assert [gpu.id for gpu in survey.resources] == [0, 2]
    assert [problem.what for problem in survey.problems] == ["NVIDIA GPU 1 does not answer: GPU is lost"]


def test_only_our_share_is_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card(), Card(uuid="GPU-11"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-11")

    assert [gpu.id for gpu in Gpu(root).detect()] == [1]


def test_mig_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card(mig=True), Card(mig=False, uuid="GPU-11"))
    survey = Gpu(root).survey()

    assert [gpu.attributes.get("mig") for gpu in survey.resources] == [True, None]
    (problem,) = survey.problems
    assert problem.what.startswith("NVIDIA GPU 0 is split by MIG")


def test_a_card_without_its_driver_is_told(tmp_path: Path) -> None:
    pci(tmp_path, "0000:51:00.0", "10de", "2330", **{"class": "0x030200\n"})
    pci(tmp_path, "0000:51:00.1", "10de", "22ba", **{"class": "0x040300\n"})  # its sound

    assert Gpu(tmp_path).survey().problems == (
        Problem(
            "NVIDIA GPU at 0000:51:00.0 is there, but its driver is not loaded: no /dev/nvidia*",
            "install NVIDIA's driver and load it",
        ),
    )


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A made-up amdsmi with one GPU, which does not know its driver."""
    made = ModuleType("amdsmi")
    made.__spec__ = ModuleSpec("amdsmi", None)

    def unknown(_: object) -> None:
        raise RuntimeError("not supported")

    answers: dict[str, Any] = {
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["first"],
        "amdsmi_get_gpu_asic_info": lambda _: {"market_name": "AMD Instinct MI300X"},
        "amdsmi_get_gpu_vram_usage": lambda _: {"vram_total": 196592, "vram_used": 283},
        "amdsmi_get_gpu_device_uuid": lambda _: "a4ff74a1-0000-1000-80a1-000000000000",
        "amdsmi_get_gpu_device_bdf": lambda _: "0000:05:00.0",
        "amdsmi_get_gpu_driver_info": unknown,
    }
    for name, function in answers.items():
        setattr(made, name, function)
    monkeypatch.setitem(sys.modules, "amdsmi", made)
    return made


@pytest.mark.usefixtures("amd")
def test_what_amdsmi_says_comes_after_nvidias(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, Card())
    write(root, {"dev/kfd": ""})
    found = Gpu(root).detect()

    assert found[1] == Resource(
        1,
        "gpu",
        {
            "vendor": "amd",
            "index": 0,
            "group": "amd",
            "product": "AMD Instinct MI300X",
            "uuid": "a4ff74a1-0000-1000-80a1-000000000000",
            "pci": "0000:05:00.0",
            "memory_bytes": 196592 * 2**20,
            "used_bytes": 283 * 2**20,
        },
        frozenset({"amd"}),
    )
    assert Gpu().visible_env((1,), found) == {"HIP_VISIBLE_DEVICES": "0"}
    assert Gpu().container((1,), found).nodes == ("/dev/kfd", "/dev/dri")
    assert found[0].attributes["group"] == "nvidia"


def test_amds_driver_without_amdsmi_is_told(tmp_path: Path) -> None:
    survey = Gpu(write(tmp_path, {"dev/kfd": ""})).survey()

    assert survey.resources == ()
    assert "amdsmi cannot be imported" in survey.problems[0].what


def test_the_settings_of_a_container() -> None:
    found = (Resource(0, "gpu", {"uuid": "GPU-00"}), Resource(1, "gpu", {"uuid": "GPU-11"}))

    assert Gpu().container((1,), found) == ContainerSettings(
        cdi=("nvidia.com/gpu=GPU-11",),
        gpu_ids=("GPU-11",),
        ulimits={"memlock": -1, "stack": 67108864},
        env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    assert Gpu().container((0, 1), ()).gpu_ids == ("0", "1")
