"""Plugins are found by name, ours and those of other packages alike."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from engines.base import ConfigError
from launcher import registry
from launcher.config.compose import compose, options


@pytest.mark.parametrize("name", registry.names("engine"))
def test_an_engine_has_the_name_that_it_is_found_by(name: str) -> None:
    assert registry.engine(name).name == name


@pytest.mark.parametrize("kind", registry.names("device"))
def test_a_device_has_the_kind_that_it_is_found_by(kind: str) -> None:
    assert registry.device(kind).kind == kind


@pytest.mark.parametrize("name", registry.names("runtime"))
def test_a_runtime_has_the_name_that_it_is_found_by(name: str) -> None:
    module, _, runtime = registry.import_path("runtime", name).partition(":")

    assert getattr(import_module(module), runtime).name == name


NEEDED = {("engine", "remote"): ("engine.url=http://127.0.0.1:9/v1",)}


@pytest.mark.parametrize("group", ["engine", "device", "runtime"])
def test_plugins_and_config_files_are_the_same_names(group: str) -> None:
    named = {"engine": "name", "device": "kind", "runtime": "name"}[group]
    configs = {
        name: compose([f"{group}={name}", *NEEDED.get((group, name), ())]) for name in options(group) if name != "auto"
    }

    # An option may be another name of one that is there; all lead to a plugin, and every plugin has its own.
    assert {getattr(getattr(config, group), named) for config in configs.values()} == set(registry.names(group))
    assert set(registry.names(group)) <= configs.keys()


def test_engines_use_devices_that_exist() -> None:
    used = {kind for name in registry.names("engine") for kind in registry.engine(name).capabilities.devices}

    assert used <= set(registry.names("device"))


def test_every_device_has_its_place_in_the_order_of_preference() -> None:
    assert sorted(compose([]).policy.devices) == registry.names("device")


def test_each_call_gives_an_engine_of_its_own() -> None:
    assert registry.engine("llamacpp") is not registry.engine("llamacpp")


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.engine("tritn")

    known = ", ".join(registry.names("engine"))
    assert str(caught.value) == f"engine 'tritn' not found; did you mean 'triton'? available: {known}"


def _install(folder: Path, name: str) -> None:
    """Make the files of a package `name` with an engine of that name, as pip would."""
    (folder / f"{name}.py").write_text(
        f"from engines.llamacpp import LlamaCpp\nclass Mine(LlamaCpp): name = '{name}'\n"
    )
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[rmlaunch.engines]\n{name} = {name}:Mine\n")


def _names(folder: Path, more: str = "") -> list[str]:
    """What a new interpreter prints of the engines' names, with the packages of `folder` beside ours."""
    code = f"from launcher import registry; print(*registry.names('engine')){more}"
    env = os.environ | {"PYTHONPATH": str(folder), "RMLAUNCH_CACHE": str(folder.parent / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_another_package_adds_an_engine_with_an_entry_point(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    _install(packages, "mine")

    assert _names(packages, "; print(registry.engine('mine').name)") == [
        *sorted([*registry.names("engine"), "mine"]), "mine",
    ]  # fmt: skip


def test_what_is_installed_is_kept_until_a_package_comes_or_goes(tmp_path: Path) -> None:
    loaded = "; import sys; print('importlib.metadata' in sys.modules)"
    ours, packages = list(registry.names("engine")), tmp_path / "packages"
    packages.mkdir()

    first = _names(packages, loaded)
    second = _names(packages, loaded)
    _install(packages, "mine")
    third = _names(packages, loaded)

    assert (first, second) == ([*ours, "True"], [*ours, "False"])
    assert third == [*sorted([*ours, "mine"]), "True"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\x00"])
def test_what_was_kept_and_is_damaged_is_looked_up_anew(tmp_path: Path, text: str) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/entry-points.json").write_text(text)

    assert _names(packages) == registry.names("engine")


def test_a_plugin_may_be_a_class_within_another_and_name_an_extra(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    _install(packages, "mine")
    with (packages / "mine.py").open("a") as module:
        module.write("class Outer: Inner = Mine\n")
    (packages / "mine-1.dist-info" / "entry_points.txt").write_text("[rmlaunch.engines]\nmine = mine:Outer.Inner [x]\n")

    assert _names(packages, "; print(registry.engine('mine').name)")[-1] == "mine"
