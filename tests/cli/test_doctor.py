"""`rmlaunch doctor`: each obstacle is told with its remedy, and a launch that nothing stops is said to be free."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import registry
from launcher.cli import inventory
from launcher.cli.doctor import NOTE, OK, PROBLEM, Check, examine
from launcher.devices.base import Problem, Resource, Surroundings, Survey
from launcher.devices.gpu import Gpu
from launcher.devices.rbln import Rbln
from launcher.paths import cache_root
from tests.cli.test_info import Npus, npus

__all__ = ["npus"]

CPU = ("engine=llamacpp", "device=cpu", "model=smollm2")
NPU = ("engine=vllm", "device=rbln", "model=llama3-8b")


def checks(*overrides: str) -> dict[str, Check]:
    """By name; of several with one name the worst."""
    worst_last = sorted(examine(overrides), key=lambda check: (OK, NOTE, PROBLEM).index(check.state))
    return {check.name: check for check in worst_last}


def problems(*overrides: str) -> list[Check]:
    return [check for check in examine(overrides) if check.state == PROBLEM]


def doctored(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)


def test_a_launch_that_nothing_stops() -> None:
    found = checks(*CPU)

    assert [check for check in found.values() if check.state == PROBLEM] == []
    assert found["config"].said == (
        "engine=llamacpp device=cpu model=smollm2; runtime=auto → process (llamacpp can run here)"
    )
    assert found["plan"].said == "llamacpp serves smollm2 as gguf for generate"
    assert found["library"] == Check("library", OK, "libgomp.so.1")
    assert found["environment llamacpp-cpu"].state == found["model"].state == NOTE  # in a cache that is empty
    assert found["program"].said == "python, of the environment that would be made"


def test_a_daemon_that_does_not_answer_is_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    (problem,) = problems(*CPU, "runtime=docker")

    assert (problem.name, problem.said) == (
        "docker",
        "no Docker daemon answers at unix:///nowhere.sock: there is no such socket",
    )
    assert problem.remedy.startswith("start Docker, set DOCKER_HOST")


def test_nothing_is_made_by_looking() -> None:
    checks(*CPU)

    assert list(cache_root().glob("environments/*")) == list(cache_root().glob("models/*")) == []


def test_hardware_that_is_not_here() -> None:
    done = doctored(*NPU, NETRC="/nonexistent", UV_INDEX="", PIP_EXTRA_INDEX_URL="")

    assert done.returncode == 2
    assert "problem  device" in done.stdout
    assert "no RBLN NPU found: looked for device nodes /dev/rbln0, /dev/rbln1, …" in done.stdout
    assert (
        "rebel-compiler==0.12.0 is only in Rebellions' portal, which needs an account (https://pypi.rbln.ai/simple)"
        in done.stdout
    )
    assert "optimum-rbln-compile would run" in done.stdout
    assert done.stdout.endswith("2 problems would stop this launch\n")


def test_a_revision_that_may_change_is_told_with_how_to_pin_it() -> None:
    def pins(source: str) -> list[Check]:
        words = ("engine=vllm", "device=cpu", f"model.source='{source}'")
        return [check for check in examine(words) if check.name == "pin"]

    commit = "0123456789abcdef" * 2 + "01234567"
    fetched = Path(cache_root(), "models/hf/org--name")
    fetched.mkdir(parents=True)
    (fetched / "v1").symlink_to(f"/hub/snapshots/{commit}")

    assert pins("hf:org/name") == [
        Check(
            "pin",
            NOTE,
            "revision 'main' of org/name may change; it is whatever it is when it is fetched first",
            "to pin it, model.source=hf:org/name@<the 40 digits of a commit>",
        )
    ]
    (known,) = pins("hf:org/name@v1")
    assert known.said == f"revision 'v1' of org/name may change; here it was {commit} when it was fetched"
    assert known.remedy == f"to pin it, model.source=hf:org/name@{commit}"
    assert pins(f"hf:org/name@{commit}") == []
    assert [check for check in examine(CPU) if check.name == "pin"] == []


def test_what_was_chosen_for_the_user_is_told() -> None:
    (said,) = [check.said for check in examine(NPU) if check.name == "choice"]

    assert "RBLN-CA25 as published for llama3-8b" in said


def test_data_for_programs() -> None:
    done = doctored(*CPU, "--json")
    data = json.loads(done.stdout)

    assert (done.returncode, data["would_start"]) == (0, True)
    assert data["checks"][0].keys() == {"name", "state", "said", "remedy"}


@pytest.mark.parametrize(
    ("overrides", "name", "words"),
    [
        (("engine=vlm",), "config", "'vlm'"),
        ((*CPU, "device.count=0"), "config", "device.count=0 must be at least 1"),
        (("engine=llamacpp", "device=rbln"), "plan", "engine=llamacpp cannot use device=rbln"),
        (("engine=llamacpp", "device=cpu", "model=minilm"), "plan", "model"),
        ((*CPU, "host=0.0.0.0"), "plan", "host='0.0.0.0' can be reached from outside"),
        ((*CPU, "model.source=file:/nowhere.gguf"), "plan", "there is no /nowhere.gguf"),
        ((*CPU, "engine.program=/nowhere/llama-server"), "program", "there is no program '/nowhere/llama-server'"),
        ((*CPU, "device.ids=[1]"), "plan", "this machine has no cpu [1]"),
    ],
)
def test_what_the_launch_would_be_refused_for_is_told_in_its_words(
    overrides: tuple[str, ...], name: str, words: str
) -> None:
    (problem,) = problems(*overrides)

    assert problem.name == name
    assert words in problem.said


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (problem,) = problems(*CPU, f"port={taken.getsockname()[1]}")

    assert f"pid {os.getpid()}" in problem.said
    assert problem.remedy == "choose another or leave port out"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RMLAUNCH_CACHE", str(tmp_path / "file/cache"))

    assert problems(*CPU)[0] == Check(
        "cache",
        PROBLEM,
        f"{tmp_path}/file/cache cannot be written: {tmp_path}/file is no folder that this user may write to",
        "RMLAUNCH_CACHE names another folder",
    )


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))

    assert [(problem.name, problem.said.partition(": ")[2]) for problem in problems(*CPU)] == [
        (name, "only 5 MiB are free") for name in ("state", "cache", "temporary")
    ]


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = registry.engine_class("llamacpp")
    monkeypatch.setattr(engine, "system_libraries", lambda *_: {"libnowhere{python}.so.1": "libnowhere"})
    (problem,) = problems(*CPU)

    assert problem.said.startswith("llamacpp needs libnowhere3.")
    assert problem.remedy.endswith("(on Debian libnowhere)")


def test_a_device_that_is_there_and_cannot_be_used(npus: type[Npus]) -> None:
    gone = Problem("RBLN NPU at 0000:51:00.0 is there, but its driver is not loaded", "install it")
    npus.found = Survey(problems=(gone,))

    assert Check("device", PROBLEM, gone.what, gone.remedy) in problems(*NPU)


def test_beside_devices_that_work_one_that_does_not_is_no_obstacle(npus: type[Npus]) -> None:
    gone = Problem("RBLN NPU at 0000:51:00.0 is there, but its driver is not loaded", "install it")
    npus.found = Survey(tuple(Resource(number, "rbln") for number in range(4)), (gone,))
    found = list(examine(NPU))

    assert Check("device", NOTE, gone.what, gone.remedy) in found
    assert Check("device", OK, "rbln [0, 1, 2, 3]") in found


def test_two_variables_that_choose_different_npus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBLN_DEVICES", "7")
    problem = Check(
        "versions",
        PROBLEM,
        "RBLN_DEVICES=7 and RBLN_VISIBLE_DEVICES=0,1,2,3 choose different NPUs, and the runtime prefers RBLN_DEVICES",
        "take RBLN_DEVICES out of engine.env and engine.inherit",
    )

    assert problem not in problems(*NPU)  # the shell's reaches no engine
    assert problem in problems(*NPU, "engine.inherit=[RBLN_DEVICES]")


def around(packages: dict[str, str], **versions: str) -> Surroundings:
    return Surroundings({}, packages, versions)


def test_parts_of_two_sdks_do_not_go_together() -> None:
    (problem,) = Rbln().mismatches(around({"rebel-compiler": "0.11.2", "optimum-rbln": "0.12.0", "torch": "2.9"}))

    assert "rebel-compiler 0.11.2, optimum-rbln 0.12.0" in problem.what
    assert Rbln().mismatches(around({"rebel-compiler": "0.12.1", "vllm-rbln": "0.12.0"})) == ()


@pytest.mark.parametrize(("driver", "told"), [("3.4.9", True), ("3.5.0", False), ("10.0", False), ("unknown", False)])
def test_a_driver_that_is_older_than_the_sdk_is_told(driver: str, told: bool) -> None:
    found = Rbln().mismatches(around({"rebel-compiler": "0.12.0"}, driver=driver))

    assert [problem.blocks for problem in found] == [False] * told


@pytest.mark.parametrize(
    ("torch", "cuda", "told"),
    [("2.13.0", "12.4", True), ("2.13.0", "13.0", False), ("2.13.0+cpu", "12.4", False), ("2.9.0", "12.4", False)],
)
def test_torch_and_the_cuda_of_the_driver(torch: str, cuda: str, told: bool) -> None:
    assert len(Gpu().mismatches(around({"torch": torch}, cuda=cuda, driver="550.1"))) == told


@pytest.mark.parametrize(("torch", "told"), [("2.13.0", True), ("2.13.0+rocm7.1", False)])
def test_torch_without_rocm_on_gpus_of_amd(torch: str, told: bool) -> None:
    hip = Gpu().visible_env((0,), (Resource(0, "gpu", {"vendor": "amd", "index": 0}, frozenset({"amd"})),))

    assert len(Gpu().mismatches(Surroundings(hip, {"torch": torch}, {}))) == told


def test_the_indexes_are_asked_only_when_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """uv itself, which finds an index of nothing but a folder without packages."""
    for name in inventory._INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    offline, online = list(examine(CPU)), list(examine(CPU, online=True))

    assert [check.state for check in offline if check.name.startswith("environment ")] == [NOTE]
    (asked,) = [check for check in online if check.name.startswith("environment ")]
    assert asked.state == PROBLEM
    assert "but asking the indexes: " in asked.said
