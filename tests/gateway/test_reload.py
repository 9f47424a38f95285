"""Settings that change while the gateway runs: used first, written down after, and never taken for known before."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from launcher.gateway import reload
from launcher.gateway.reload import ComposedRequest, Reloader, marks
from launcher.gateway.settings import Key, Settings, hashed
from tests.gateway.harness import settings

ALICE, BOB = (Key(name, hashed(f"the-key-of-{name}-0123", "")) for name in ("alice", "bob"))


@pytest.fixture
def both() -> Settings:
    return settings(keys=[ALICE, BOB])


def reloader_of(file: Path, made: Settings, taken: list[Settings]) -> Reloader:
    file.write_text(ComposedRequest([], None, made, marks(None)).dumps())
    return Reloader(file, taken.append)


def test_a_key_that_is_removed_while_nothing_can_be_written_is_removed(tmp_path: Path, both: Settings) -> None:
    taken: list[Settings] = []
    disk, away = tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    file = disk / "settings.json"
    reloader = reloader_of(file, both, taken)
    disk.rename(away)

    only_bob = ComposedRequest([], None, dataclasses.replace(both, keys=[BOB]), marks(None))
    done = reloader.hand_over(only_bob.dumps())

    assert [one.keys for one in taken] == [[BOB]]
    assert done["changes"] == ["key alice removed"]
    assert "No such file" in done["unsaved"]
    away.rename(disk)
    assert len(ComposedRequest.loads(file.read_text()).settings.keys) == 2
    reloader.look()
    assert ComposedRequest.loads(file.read_text()).settings.keys == [BOB]
    assert (len(taken), reloader.hand_over(only_bob.dumps())) == (1, {"changes": [], "unsaved": ""})


def test_differences_are_to_what_is_in_use_and_not_to_what_is_on_the_disk(tmp_path: Path, both: Settings) -> None:
    taken: list[Settings] = []
    file = tmp_path / "settings.json"
    reloader = reloader_of(file, both, taken)
    shutil.copy(file, tmp_path / "before")
    asked = ComposedRequest([], None, dataclasses.replace(both, keys=[BOB]), marks(None)).dumps()
    reloader.hand_over(asked)
    (tmp_path / "before").replace(file)

    assert reloader.hand_over(asked)["changes"] == []


def test_configs_that_could_not_be_composed_are_tried_again(
    tmp_path: Path, both: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Settings] = []
    file = tmp_path / "settings.json"
    file.write_text(ComposedRequest(["gateway=mine"], None, both, marks(None)).dumps())
    reloader = Reloader(file, taken.append)
    config = tmp_path / "config" / "rmlaunch" / "gateway" / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"defaults: [default, _self_]\nport: {both.port}\nkeys: {{bob: {{sha256: {BOB.sha256}}}}}\n")
    monkeypatch.setattr(reload, "_AGAIN_S", 0.0)
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python")
        reloader.look()
        assert (taken, reloader.settings) == ([], both)

    reloader.look()

    assert [one.keys for one in taken] == [[BOB]]


def test_what_cannot_be_used_is_not_taken_for_used(tmp_path: Path, both: Settings) -> None:
    def use(_: Settings) -> None:
        raise ValueError("it cannot be used")

    file = tmp_path / "settings.json"
    file.write_text(ComposedRequest([], None, both, marks(None)).dumps())
    reloader = Reloader(file, use)

    with pytest.raises(ValueError, match="it cannot be used"):
        reloader.hand_over(ComposedRequest([], None, dataclasses.replace(both, keys=[BOB]), marks(None)).dumps())

    assert reloader.settings == both
    assert ComposedRequest.loads(file.read_text()).settings == both


def test_what_does_not_go_together_is_told_and_changes_nothing(tmp_path: Path, both: Settings) -> None:
    taken: list[Settings] = []
    reloader = reloader_of(tmp_path / "settings.json", both, taken)
    elsewhere = ComposedRequest([], None, dataclasses.replace(both, port=both.port + 1), marks(None))

    assert "--replace starts it anew" in reloader.hand_over(elsewhere.dumps())["error"]
    assert (taken, reloader.settings) == ([], both)


def test_a_settings_file_of_the_release_before_is_understood(both: Settings) -> None:
    now = ComposedRequest(["++gateway.route_defaults.queue=5", "gateway.port=1"], None, both)
    before = json.loads(now.dumps())
    before["settings"]["of_deployments"] = before["settings"].pop("deployment_defaults")
    before["overrides"] = ["++gateway.defaults_of_routes.queue=5", "gateway.port=1"]

    assert ComposedRequest.loads(json.dumps(before)) == now


@pytest.mark.parametrize("text", ["3", "{}", '{"overrides": [], "config_dir": null, "settings": 3}'])
def test_a_settings_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no object|is missing"):
        ComposedRequest.loads(text)
