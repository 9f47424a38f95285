"""The store of artifacts: whole or not there, made once, described, and removed only where nobody needs it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import OUTPUT, BuildProfile, BuildStep, Environment, RequestError
from launcher.cli import main
from launcher.deployments.ledger import Ledger
from launcher.paths import artifacts_root
from launcher.prepare import artifacts
from launcher.prepare.builds import run
from launcher.prepare.stores import Pruned
from launcher.progress import Progress
from tests.supervision import wait_for

QUIET = Progress(quiet=True)
PROFILE = BuildProfile("NPU-T1", "cc", "1.0", {"level": 2}, "npu")

#: makes the artifact of a step whose command says when it has begun, and waits for a file before it goes on
_BUILDER = """
import sys
from pathlib import Path
from tests.prepare.test_artifacts import slow_step
from launcher.prepare.builds import run
from launcher.progress import Progress
class Said(Progress):
    def detail(self, text):
        print(text, flush=True)
run(slow_step(Path(sys.argv[1])), Said(quiet=True))
print("there", flush=True)
"""
_COMMAND = """
import os, sys, time
from pathlib import Path
out, root = Path(sys.argv[1]), Path(sys.argv[2])
(out / "half").write_text("x" * 1000)
with (root / "begun").open("a") as file:
    file.write(f"{os.getpid()}\\n")
print("compiling", flush=True)
while not (root / "go").exists():
    time.sleep(0.01)
(out / "weights").write_text("whole")
"""


def step_of(root: Path, code: str = "(out / 'w').write_text('whole')", name: str = "m", **changes: Any) -> BuildStep:
    script = f"import sys; from pathlib import Path; out = Path(sys.argv[1]); {code}"
    step = BuildStep(
        name="made",
        argv=(sys.executable, "-c", script, OUTPUT),
        output=PROFILE.place(str(artifacts_root(root)), name, "weights-1"),
        environment=Environment("current", sys.prefix, "3.11", managed=False),
        model_id=name,
        profile=PROFILE,
    )
    return dataclasses.replace(step, **changes)


def slow_step(root: Path) -> BuildStep:
    return step_of(root, argv=(sys.executable, "-c", _COMMAND, OUTPUT, str(root)))


@contextlib.contextmanager
def builder(root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _BUILDER, str(root)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def visible(root: Path) -> list[str]:
    return sorted(file.name for file in artifacts_root(root).iterdir() if not file.name.startswith("."))


# --------------------------------------------------------------------------------------------------- made by processes


def test_a_builder_that_is_killed_leaves_no_artifact_and_no_compiler(tmp_path: Path) -> None:
    step = slow_step(tmp_path)
    with builder(tmp_path) as process:
        assert says(process) == "compiling"
        compiler = int((tmp_path / "begun").read_text())
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    wait_for(lambda: not Path(f"/proc/{compiler}").exists(), 10)
    assert visible(tmp_path) == [f"{Path(step.output).name}.log"]
    assert artifacts.found(artifacts_root(tmp_path)) == []
    assert len(list(artifacts_root(tmp_path).glob(".*.partial-tmp-*"))) == 1  # its TMPDIR, which is found again
    (tmp_path / "go").touch()
    run(step, QUIET)
    assert (Path(step.output) / "weights").read_text() == "whole"
    assert list(artifacts_root(tmp_path).glob(".*.partial-*")) == []


def test_two_builders_compile_once(tmp_path: Path) -> None:
    with builder(tmp_path) as first:
        assert says(first) == "compiling"
        with builder(tmp_path) as second:
            assert says(second) == "waiting for another launch that builds the same"
            (tmp_path / "go").touch()
            assert (says(first), says(second)) == ("there", "there")
            assert (first.wait(10), second.wait(10)) == (0, 0)

    assert len((tmp_path / "begun").read_text().splitlines()) == 1
    assert [item.id for item in artifacts.found(artifacts_root(tmp_path))] == [Path(slow_step(tmp_path).output).name]


# ------------------------------------------------------------------------------------------------------------- written


def test_an_artifact_says_what_made_it_and_no_secret(tmp_path: Path) -> None:
    profile = dataclasses.replace(PROFILE, flags={"env": {"LICENCE_KEY": "sesame", "LEVEL": "2"}})
    step = step_of(tmp_path, profile=profile, env={"LICENCE_KEY": "sesame"})
    before = round(time.time(), 3)  # as it is written

    run(step, QUIET)

    (found,) = artifacts.found(artifacts_root(tmp_path))
    assert found == artifacts.BuildArtifact(
        id=Path(step.output).name,
        model_id="m",
        profile=dataclasses.replace(profile, flags={"env": {"LICENCE_KEY": "***", "LEVEL": "2"}}),
        path=Path(step.output),
        metadata=found.metadata,
    )
    assert before <= found.made <= round(time.time(), 3)
    assert (found.bytes, found.format, found.log.name) == (5, "npu", f"{found.id}.log")
    assert found.metadata["argv"] == list(step.argv)
    assert found.metadata["env"] == {"LICENCE_KEY": "***"}
    assert 0 <= found.metadata["seconds"] < 30
    assert "sesame" not in (found.path / artifacts.METADATA).read_text()


def test_one_that_was_made_before_metadata_was_written_is_still_listed(tmp_path: Path) -> None:
    old = artifacts_root(tmp_path) / "llama3-8b-rbln-0123456789ab"
    old.mkdir(parents=True)
    (old / "prefill.rbln").write_text("12345")

    (found,) = artifacts.found(artifacts_root(tmp_path))

    assert (found.model_id, found.format, found.profile, found.bytes) == ("llama3-8b", "rbln", None, 5)


@given(data=st.binary() | st.dictionaries(st.text(), st.none() | st.text() | st.integers()).map(json.dumps))
def test_metadata_that_cannot_be_read_hides_no_artifact(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | str
) -> None:
    folder = tmp_path_factory.mktemp("store") / "m-npu-1"
    folder.mkdir()
    (folder / artifacts.METADATA).write_bytes(data.encode() if isinstance(data, str) else data)

    (found,) = artifacts.found(folder.parent)

    assert (found.id, found.model_id, found.profile) == ("m-npu-1", "m", None)


words = st.text(max_size=8)
profiles = st.builds(
    BuildProfile, words, words, words, st.dictionaries(words, st.integers() | words, max_size=3), st.sampled_from("ab")
)


@given(profiles, profiles, words, words)
def test_the_place_is_that_of_the_weights_and_the_profile_and_nothing_else(
    one: BuildProfile, other: BuildProfile, weights: str, more: str
) -> None:
    same = (one, weights) == (other, more)

    assert (one.place("/s", "m", weights) == other.place("/s", "m", more)) is same
    assert one.place("/elsewhere", "m", weights) == one.place("/s", "m", weights).replace("/s", "/elsewhere", 1)


def test_an_artifact_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    for name in ("aa", "ab"):
        run(step_of(tmp_path, name=name), QUIET)
    store = artifacts_root(tmp_path)

    assert artifacts.find(store, "aa-n").model_id == "aa"
    with pytest.raises(RequestError, match=r"^artifact 'a' can be any of: aa-npu-\w+, ab-npu-\w+$"):
        artifacts.find(store, "a")
    with pytest.raises(RequestError, match=r"^artifact 'b' not found; available: aa-npu-\w+, ab-npu-\w+$"):
        artifacts.find(store, "b")


# ------------------------------------------------------------------------------------------------------------- removed


def pruned(root: Path, used: Mapping[str, tuple[str, ...]] | None = None, **options: Any) -> list[Pruned]:
    return list(artifacts.prune(artifacts_root(root), used or {}, **{"unused": False, **options}))


def test_without_a_word_only_what_is_left_of_failed_builds_goes(tmp_path: Path) -> None:
    step, store = step_of(tmp_path), artifacts_root(tmp_path)
    run(step, QUIET)
    half = store / ".m-npu-1.partial-abc"
    half.mkdir()
    (half / "half").write_text("123")
    (store / "m-npu-2.log").write_text("failed")

    assert pruned(tmp_path) == [
        Pruned(half, 3, "half-made"),
        Pruned(store / "m-npu-2.log", 6, "log of a build that failed"),
    ]
    name = Path(step.output).name
    assert visible(tmp_path) == [name, f"{name}.log"]


def test_what_is_being_made_is_left_alone(tmp_path: Path) -> None:
    with builder(tmp_path) as process:
        assert says(process) == "compiling"
        assert pruned(tmp_path, unused=True) == []
        (tmp_path / "go").touch()
        assert says(process) == "there"

    assert len(artifacts.found(artifacts_root(tmp_path))) == 1


def test_unused_means_that_nobody_uses_it(tmp_path: Path) -> None:
    for name in ("old", "new", "busy"):
        run(step_of(tmp_path, name=name), QUIET)
    store = artifacts_root(tmp_path)
    ids = {item.model_id: item for item in artifacts.found(store)}
    old = ids["old"].path / artifacts.METADATA
    old.write_text(json.dumps({**json.loads(old.read_text()), "made": time.time() - 3 * 86400}))
    used = {ids["busy"].id: ("triton",)}

    assert [item.path.name for item in pruned(tmp_path, used, unused=True, older_than_s=86400.0)] == [
        ids["old"].id, ids["old"].log.name,
    ]  # fmt: skip
    assert {item.path.name for item in pruned(tmp_path, used, unused=True)} == {ids["new"].id, ids["new"].log.name}
    assert visible(tmp_path) == [ids["busy"].id, ids["busy"].log.name]
    assert list(store.glob(".*.partial-*")) == []


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")))
def test_pruning_never_removes_what_is_used_and_removes_all_else(
    tmp_path_factory: pytest.TempPathFactory, there: set[str], used: set[str]
) -> None:
    store = tmp_path_factory.mktemp("store")
    for name in there:
        (store / f"{name}-npu-1").mkdir()

    list(artifacts.prune(store, {f"{name}-npu-1" for name in used}, unused=True))

    assert {item.model_id for item in artifacts.found(store)} == there & used


# -------------------------------------------------------------------------------------------------------- the commands


@contextlib.contextmanager
def live(state: Path, name: str, plan: Mapping[str, object]) -> Iterator[None]:
    """A deployment whose owner, which is this process, lives."""
    folder = Ledger(state).deployments / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"ports": [], "plan": plan}))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Path:
    cache = Path(os.environ["RMLAUNCH_CACHE"])
    assert cache.is_relative_to(tmp_path)
    for name in ("mine", "theirs"):
        run(step_of(cache, "(out / 'w').write_text('whole'); print('compiled well')", name), QUIET)
    return artifacts_root(cache)


def test_list_show_and_prune_know_who_uses_what(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = Path(os.environ["RMLAUNCH_STATE"])
    mine, theirs = artifacts.found(store)

    with live(state, "d1", {"model": {"path": f"{mine.path}/w"}}):
        assert main.run(["artifact", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines] == [
            ["ID", "MODEL", "FORMAT", "TARGET", "SIZE", "AGE", "USED", "BY"],
            [mine.id, "mine", "npu", "NPU-T1", "5", "B", "0s", "d1"],
            [theirs.id, "theirs", "npu", "NPU-T1", "5", "B", "0s", "–"],
        ]

        assert main.run(["artifact", "show", "mine", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["used_by"], shown["compiler"], shown["log_tail"]) == (["d1"], "cc 1.0", ["compiled well"])
        assert shown["profile"]["flags"] == {"level": 2}

        assert main.run(["artifact", "prune", "--unused", "--json"]) == 0
        removed = json.loads(capsys.readouterr().out)
        assert [Path(item["path"]).name for item in removed] == [theirs.id, theirs.log.name]
        assert artifacts.found(store) == [mine]

    assert main.run(["artifact", "prune", "--older-than", "1"]) == 0
    assert artifacts.found(store) == [mine]
    assert main.run(["artifact", "prune", "--older-than", "0"]) == 0
    assert artifacts.found(store) == []


def test_an_action_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RequestError, match="artifact verb 'drop' not found; available: list, show, prune"):
        main.run(["artifact", "drop"])
    with pytest.raises(RequestError, match="--older-than -1 must not be negative"):
        main.run(["artifact", "prune", "--older-than", "-1"])
