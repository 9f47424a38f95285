"""`rmlaunch info` over made-up devices, environments and daemons."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engines.base import ConfigError
from launcher import registry
from launcher.cli import info, inventory, main
from launcher.config.compose import compose
from launcher.devices.base import GIB, DevicePlugin, Portal, Problem, Resource, Survey
from launcher.paths import cache_root
from launcher.planning.environments import describe
from tests.test_imports import loaded_by

HELD = Resource(0, "npu", {"product": "N1", "memory_bytes": 16 * GIB, "used_bytes": GIB, "holders": {os.getpid(): GIB}})


class Npus(DevicePlugin):
    """Made-up devices, in place of a kind that engines know."""

    kind: ClassVar[str] = "rbln"
    label: ClassVar[str] = "RBLN NPU"
    looked_for: ClassVar[str] = "nothing real"
    portals: ClassVar[dict[str, Portal]] = {"rebel-compiler": Portal("https://pypi.rbln.ai/simple", "a portal")}
    found: ClassVar[Survey] = Survey((HELD,), (), {"driver": "3.5.0"})

    def detect(self) -> tuple[Resource, ...]:
        return self.found.resources

    def survey(self) -> Survey:
        return self.found


@pytest.fixture
def npus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Npus]:
    """On a machine that has an account nowhere. The entry point is replaced, as another package could."""
    real = registry.device
    plugin = type("Made", (Npus,), {})
    monkeypatch.setattr(registry, "device", lambda kind: plugin() if kind == "rbln" else real(kind))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in inventory._INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return plugin


def engines(data: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(one["engine"], one["device"]): (one["state"], one["missing"]) for one in data["engines"]}


def make(name: str, kind: str) -> Path:
    """An environment as the engine's config wants it, with one package of 1 MiB and 5 bytes."""
    wanted = inventory.environment_of(name, kind, cache_root())
    assert wanted is not None
    record = Path(wanted.site_packages) / "thing-1.0.dist-info/RECORD"
    record.parent.mkdir(parents=True)
    record.write_text('thing.py,sha256=x,1048576\n"a,b.py",sha256=y,5\nthing-1.0.dist-info/RECORD,,\n')
    Path(wanted.path, "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.12.1\n")
    return Path(wanted.path)


def test_a_device_with_its_memory_its_driver_and_who_uses_it(npus: type[Npus]) -> None:
    data = info.gather()
    (device,) = [one for one in data["devices"] if one["kind"] == "rbln"]

    assert device == {
        "kind": "rbln",
        "id": 0,
        "product": "N1",
        "memory_bytes": 16 * GIB,
        "used_bytes": GIB,
        "tags": [],
        "holders": [{"pid": os.getpid(), "program": Path("/proc/self/comm").read_text().strip(), "bytes": GIB}],
        "deployment": None,
    }
    assert data["versions"]["rbln"] == npus.found.versions
    assert "rbln" not in data["absent"]
    shown = "\n".join(info.lines(data))
    assert "rbln 0  N1" in shown
    assert "16.0 GiB, 1.0 GiB used  " in shown
    assert f"used by pid {os.getpid()} " in shown


def test_the_one_thing_that_an_engine_lacks(npus: type[Npus], monkeypatch: pytest.MonkeyPatch) -> None:
    portal = "rebel-compiler==0.12.0 is only in a portal (https://pypi.rbln.ai/simple)"
    assert engines(info.gather())["vllm", "rbln"] == ("missing", portal)

    monkeypatch.setenv("UV_INDEX", "https://me:secret@elsewhere.example/simple https://pypi.rbln.ai/simple")
    assert engines(info.gather())["vllm", "rbln"] == ("missing", portal)

    monkeypatch.setenv("UV_INDEX", "https://me:secret@pypi.rbln.ai/simple")
    assert engines(info.gather())["vllm", "rbln"] == ("on first use", None)

    make("vllm", "rbln")
    assert engines(info.gather())["vllm", "rbln"] == ("ready", None)

    npus.found = Survey(problems=(Problem("RBLN NPU at 0 is there, but its driver is not loaded", "install it"),))
    assert engines(info.gather())["vllm", "rbln"] == ("missing", npus.found.problems[0].what)

    npus.found = Survey(problems=(Problem("little is known", "no matter", blocks=False),))
    assert engines(info.gather())["vllm", "rbln"] == ("missing", "no RBLN NPU found")


@pytest.mark.parametrize("name", registry.names("engine"))
def test_every_engine_has_a_line_for_each_device_that_it_can_use(name: str) -> None:
    found = [device for engine, device in engines(info.gather()) if engine == name]

    assert found == list(registry.engine_class(name).capabilities.devices)


@pytest.mark.parametrize("name", registry.names("engine"))
def test_the_environment_that_is_looked_for_is_the_one_that_a_launch_would_make(name: str, tmp_path: Path) -> None:
    config = compose([f"engine={name}", *(["engine.url=http://127.0.0.1:9/v1"] if name == "remote" else [])]).engine
    engine = registry.engine(name)
    for kind in engine.capabilities.devices:
        key = engine.environment_key(kind, dataclasses.asdict(config))
        wanted = describe(f"{name}-{key}", config.environment, config.environments.get(key), tmp_path)

        assert inventory.environment_of(name, kind, tmp_path) == wanted


@pytest.mark.usefixtures("npus")
def test_a_netrc_is_an_account(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine pypi.rbln.ai login me password secret\n")

    assert inventory.has_account("https://pypi.rbln.ai/simple")
    assert not inventory.has_account("https://elsewhere.example/simple")
    assert engines(info.gather())["triton", "rbln"] == ("on first use", None)


def test_environments_with_their_size_and_python() -> None:
    path = make("llamacpp", "cpu")
    half_made = path.with_name(f".{path.name}.partial-x")
    half_made.mkdir()
    (half_made / "pyvenv.cfg").write_text("version_info = 3.12.1\n")

    assert info.gather()["environments"] == [
        {"name": "llamacpp-cpu", "path": str(path), "python": "3.12.1", "size_bytes": 1048581}
    ]


def test_packages_are_those_installed_or_those_pinned() -> None:
    wanted = inventory.environment_of("vllm", "rbln", cache_root())
    assert wanted is not None

    assert inventory.packages(wanted)["rebel-compiler"] == "0.12.0"
    make("vllm", "rbln")
    assert inventory.packages(wanted) == {"thing": "1.0"}


def test_the_verb_prints_text_or_data(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "launcher", "info", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert said().startswith("rmlaunch ")
    data = json.loads(said("--json"))
    assert list(data) == [
        "rmlaunch", "python", "state", "cache", "devices", "absent", "problems", "versions", "engines", "environments",
        "runtimes",
    ]  # fmt: skip
    assert {(one["kind"], one["id"]) for one in data["devices"]} >= {("cpu", 0), ("remote", 0)}


def test_words_that_it_does_not_know_are_refused() -> None:
    with pytest.raises(ConfigError, match="'device=cpu' is one word too many; see rmlaunch info --help"):
        main.run(["info", "device=cpu"])


def test_it_loads_nothing_heavy() -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "psutil", "rich", "torch"}

    assert heavy & loaded_by("from launcher.cli import info\nassert info.gather()") == set()
