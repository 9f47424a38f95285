"""`env`: the environments of engines are listed with who uses them, made ahead of a launch, and removed when unused."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.base import ConfigError, DeploymentError, Environment
from launcher.cli import doctor, main
from launcher.deployments.ledger import Ledger
from launcher.paths import cache_root, state_root
from launcher.prepare import environment_store, environments
from launcher.prepare.stores import users
from launcher.progress import Progress
from tests.deployments.test_ledger import held

STORE = "environments"


def make(name: str, age_s: float = 0.0) -> Path:
    """An environment as it is when it is whole, with one package of 1 MiB; last used `age_s` ago."""
    path = cache_root() / STORE / name
    record = path / "lib/python3.12/site-packages/thing-1.0.dist-info/RECORD"
    record.parent.mkdir(parents=True)
    record.write_text("thing.py,sha256=x,1048576\n")
    (path / "pyvenv.cfg").write_text("version_info = 3.12.1\n")
    (path.parent / f"{name}.lock.txt").write_text("thing==1.0\n")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@contextmanager
def live(name: str, plan: object) -> Iterator[Path]:
    """A deployment whose owner, which is this process, lives; `plan` is what its plan.json has."""
    folder = Ledger(state_root()).deployments / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextmanager
def process_in(path: Path) -> Iterator[int]:
    """A program of nobody's that runs out of the environment at `path`."""
    (path / "bin").mkdir()
    (path / "bin/python").symlink_to(sys.executable)
    command = [str(path / "bin/python"), "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The users of each environment that `env list` tells of."""
    capsys.readouterr()
    assert main.run(["env", "list", "--json"]) == 0
    return {one["id"]: one["used_by"] for one in json.loads(capsys.readouterr().out)}


def kept() -> list[str]:
    return [one.id for one in environment_store.found(cache_root() / STORE)]


def test_they_are_listed_with_all_that_is_known_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    path = make("llamacpp-cpu-0123456789ab", age_s=7300)
    make("torchserve-cpu-vllm-0123456789ab")
    make("convert-0123456789ab")
    with live("a", {"plan": {"argv": [f"{path}/bin/llama-server"]}}):
        assert main.run(["env", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert main.run(["env", "list", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)

    assert [line.split() for line in lines] == [
        ["ID", "ENGINE", "DEVICE", "PYTHON", "SIZE", "LAST", "USED", "USED", "BY"],
        ["convert-0123456789ab", "–", "–", "3.12.1", "1", "MiB", "0s", "–"],
        ["llamacpp-cpu-0123456789ab", "llamacpp", "cpu", "3.12.1", "1", "MiB", "2h", "a"],
        ["torchserve-cpu-vllm-0123456789ab", "torchserve", "cpu-vllm", "3.12.1", "1", "MiB", "0s", "–"],
    ]
    assert data[1] == {
        "id": "llamacpp-cpu-0123456789ab",
        "engine": "llamacpp",
        "device": "cpu",
        "python": "3.12.1",
        "bytes": 1048576,
        "last_used_s": data[1]["last_used_s"],
        "used_by": ["a"],
        "path": str(path),
    }
    assert 7300 <= data[1]["last_used_s"] < 7400


@pytest.mark.parametrize(
    "plan",
    [
        {"plan": {"environment": {"path": "PATH"}}},
        {"plan": {"container": {"mounts": [{"source": "PATH", "target": "PATH"}]}}},
        {"format": 99, "what another version calls it": {"command": "PATH/bin/python -m server"}},
        {"plan": {"argv": ["/through/a/link/PATH".replace("/PATH", "/environments/x-cpu-0123456789ab/bin/x")]}},
    ],
    ids=["environment", "mounts", "another version", "another spelling"],
)
def test_what_a_running_deployments_record_names_is_kept(plan: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = make("x-cpu-0123456789ab")
    make("y-cpu-0123456789ab")
    with live("a", json.loads(json.dumps(plan).replace("PATH", str(path)))):
        assert listed(capsys) == {"x-cpu-0123456789ab": ["a"], "y-cpu-0123456789ab": []}
        assert main.run(["env", "prune", "--unused"]) == 0
        assert kept() == ["x-cpu-0123456789ab"]

    assert main.run(["env", "prune", "--unused"]) == 0
    assert kept() == []


def test_a_folder_that_json_writes_in_another_way_is_known() -> None:
    text = json.dumps({"path": "/home/jürgen/environments/x-1/bin"})

    assert users(Path("/home/jürgen/environments"), {"a": text}) == {"x-1": ("a",)}


def test_what_a_process_runs_from_is_kept_though_no_record_here_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = make("x-cpu-0123456789ab")
    with process_in(path) as pid:
        (user,) = listed(capsys)["x-cpu-0123456789ab"]
        assert user.startswith(f"pid {pid} (")
        assert main.run(["env", "prune", "--unused"]) == 0
        assert kept() == ["x-cpu-0123456789ab"]


def test_without_unused_only_what_is_half_made_goes(capsys: pytest.CaptureFixture[str]) -> None:
    path = make("x-cpu-0123456789ab")
    stale, being_made = (path.with_name(f".{name}-cpu-1.partial-a") for name in ("stale", "made"))
    stale.mkdir()
    being_made.mkdir()
    with held(path.with_name(".made-cpu-1.lock")):
        assert main.run(["env", "prune", "--json"]) == 0

    removed = json.loads(capsys.readouterr().out)
    assert removed == [{"path": str(stale), "bytes": 0, "why": "half-made"}]
    assert (stale.exists(), being_made.exists(), path.exists()) == (False, True, True)


def test_one_whose_lock_is_held_is_left_alone() -> None:
    path = make("x-cpu-0123456789ab")
    with held(path.with_name(f".{path.name}.lock")):
        assert main.run(["env", "prune", "--unused"]) == 0
    assert path.exists()


def test_the_digests_of_its_files_outlive_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = make("x-cpu-0123456789ab")
    (path / "own").write_bytes(bytes(4096))
    (path / "uvs").write_bytes(bytes(4096))
    (path.parent / "cached").hardlink_to(path / "uvs")

    assert main.run(["env", "prune", "--unused"]) == 0

    said = capsys.readouterr()
    assert said.out.split() == ["x-cpu-0123456789ab", "4", "KiB", "unused"]
    assert said.err.startswith("removed 1, 4 KiB\n")
    assert environments.lock_of(path).read_text() == "thing==1.0\n"


def test_of_the_unused_ones_only_old_ones_may_go() -> None:
    make("new-cpu-0123456789ab")
    make("old-cpu-0123456789ab", age_s=2 * 86400)

    assert main.run(["env", "prune", "--older-than", "1"]) == 0
    assert kept() == ["new-cpu-0123456789ab"]
    with pytest.raises(ConfigError, match="--older-than -1 must not be negative"):
        main.run(["env", "prune", "--older-than", "-1"])


def test_a_launch_that_finds_it_whole_has_used_it() -> None:
    path = make("x-cpu-0123456789ab", age_s=2 * 86400)

    environments.ensure(Environment("x-cpu", str(path), "3.12"), Progress(quiet=True))
    assert main.run(["env", "prune", "--older-than", "1"]) == 0
    assert path.exists()


def test_nothing_is_removed_while_it_cannot_be_told_who_uses_it() -> None:
    path = make("x-cpu-0123456789ab")
    with live("a", {}) as folder:
        (folder / "plan.json").unlink()
        os.mkfifo(folder / "plan.json")
        with pytest.raises(DeploymentError, match="cannot be told which environments are in use; stop a first"):
            main.run(["env", "prune", "--unused"])
    assert path.exists()


def test_a_launch_that_begins_waits_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims its name in the ledger before it looks for its environment, and nobody else has that meanwhile."""
    path = make("x-cpu-0123456789ab")
    script = "import sys, pathlib; from launcher.deployments.ledger import Ledger\n"
    script += "with Ledger(pathlib.Path(sys.argv[1])).exclusive(): print(pathlib.Path(sys.argv[2]).exists())"
    begun: list[subprocess.Popen[str]] = []
    prune = environment_store.prune

    def slowly(*args: object, **options: object) -> object:
        command = [sys.executable, "-c", script, str(state_root()), str(path)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        time.sleep(0.5)
        return prune(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(environment_store, "prune", slowly)
    assert main.run(["env", "prune", "--unused"]) == 0
    (launch,) = begun
    assert launch.communicate(timeout=20)[0] == "False\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["engine=llamacpp", "device=cpu", "engine.environment=current"], "is yours, and nothing is made there"),
        (["engine=remote", "model=remote", "model.id=m", "engine.url=http://127.0.0.1:9/v1"], "runs nothing here"),
    ],
)
def test_where_there_is_none_to_make_that_is_said(words: list[str], error: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match=error):
        main.run(
            ["env", "create", *words, *([f"model.source=file:{tmp_path}/m.gguf"] if "device=cpu" in words else [])]
        )


def test_one_is_made_ahead_of_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.setenv("UV_OFFLINE", "1")
    words = ["engine=llamacpp", "device=cpu", f"model.source=file:{tmp_path}/m.gguf"]

    assert main.run(["env", "create", *words, "engine.environments.cpu.requirements=[]"]) == 0

    path = Path(capsys.readouterr().out.strip())
    assert path.parent == cache_root() / STORE
    assert path.name.startswith("llamacpp-cpu-")
    assert kept() == [path.name]


def test_doctor_tells_what_they_take_and_how_to_free_it() -> None:
    assert doctor._environments().said == f"none is made in {cache_root()}/environments"
    make("x-cpu-0123456789ab")
    make("y-cpu-0123456789ab")

    check = doctor._environments()
    assert check.said.startswith(f"2 with 2 MiB of packages in {cache_root()}/environments; `rmlaunch env prune ")
