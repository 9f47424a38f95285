"""Completion: what is offered after which words, and that real shells put it into the command line."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.base import ConfigError
from launcher.cli import main, table
from launcher.cli.completion import OFFERS, SHELLS, answer
from launcher.config.compose import options
from launcher.paths import artifacts_root, cache_root, state_root, user_config
from tests.test_imports import loaded_by

DRIVEN = """
source <(rmlaunch completion bash)
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_rmlaunch
printf '%s\\n' "${COMPREPLY[@]}"
"""
#: how a shell is started that reads no settings, and how completion is set up in it
INTERACTIVE = {
    "bash": (["bash", "--norc", "-i"], "source <(rmlaunch completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; source <(rmlaunch completion zsh)"),
    "fish": (["fish", "--no-config", "-i"], "rmlaunch completion fish | source"),
}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def deployments() -> None:
    for name, state in (("alpha", "READY"), ("beta", "FAILED"), ("old", "STOPPED"), ("new", "")):
        folder = state_root() / "deployments" / name
        folder.mkdir(parents=True)
        if state:
            (folder / "state.json").write_text(json.dumps({"state": state}))
    (state_root() / "deployments/beta/state.json").write_text(json.dumps({"state": "FAILED", "leftovers": []}))


def offered(*words: str) -> list[str]:
    """The candidates for the last of `words`, as a shell gets them."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "__complete", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


def test_the_first_word_is_a_verb_or_a_config_group() -> None:
    groups = ["engine=", "device=", "model=", "runtime=", "policy="]

    assert offered("") == offered() == [*table.first_words(), *groups]
    assert offered("--config-dir", "/tmp", "sta") == ["status"]
    assert offered("engine=llamacpp", "") == groups[1:]
    assert offered("-m", "e") == ["engine=", "engine."]


@pytest.mark.parametrize("name", table.VERBS)
def test_every_flag_of_a_verb_is_offered(name: str) -> None:
    words = [word for word in (*table.VERBS[name].words, table.CONFIG_DIR) if word.is_flag]

    assert offered(*name.split(), "--") == [*(word.names[-1] if word.names[-1].startswith("--") else word.names[0]
                                              for word in words), "--help"]  # fmt: skip


@pytest.mark.parametrize("name", table.VERBS)
def test_whatever_a_word_offers_is_known(name: str) -> None:
    known = {*OFFERS, "", "docker-run", "bash|zsh|fish"}

    assert {word.offers for word in table.VERBS[name].words} <= known


def test_a_flag_is_offered_once() -> None:
    assert "--json" not in offered("ps", "--json", "--")
    assert "--lines" not in offered("logs", "a", "-n", "5", "--")


@pytest.mark.parametrize("group", table.GROUPS)
def test_a_group_offers_its_verbs(group: str) -> None:
    assert offered(group, "") == table.of_group(group)
    assert offered(group, "-") == ["--help"]


@pytest.mark.usefixtures("deployments")
def test_names_are_of_deployments_in_the_state_that_the_verb_wants() -> None:
    assert offered("stop", "") == offered("infer", "") == offered("restart", "") == ["alpha", "new"]
    assert offered("logs", "") == offered("status", "--json", "") == ["alpha", "beta", "new", "old"]
    assert offered("rm", "") == ["beta", "new", "old"]
    assert offered("stop", "alpha", "") == ["new"]
    assert offered("logs", "alpha", "") == []
    assert offered("logs", "-n", "5", "al") == ["alpha"]
    assert offered("infer", "alpha", "hello", "max") == ["max_tokens="]


def test_options_of_a_group_are_those_that_can_be_chosen(tmp_path: Path) -> None:
    for folder, name in ((user_config(), "mine"), (tmp_path / "more", "theirs")):
        (folder / "model").mkdir(parents=True)
        (folder / f"model/{name}.yaml").touch()

    assert offered("model=") == [f"model={name}" for name in options("model")]
    assert "model=mine" in offered("plan", "model=m")
    assert offered("up", "-d", f"--config-dir={tmp_path}/more", "model=th") == ["model=theirs"]
    assert offered("--config-dir", f"{tmp_path}/more", "model=th") == ["model=theirs"]
    assert offered("-m", "engine=triton,tor") == ["engine=triton,torchserve"]
    assert offered("gateway", "up", "gateway=") == ["gateway=default"]


def test_keys_are_those_of_the_schema() -> None:
    assert offered("plan", "supervise.max") == ["supervise.max_crashes="]
    assert offered("plan", "super") == ["supervise."]
    assert offered("plan", "device.share=") == ["device.share=true", "device.share=false"]
    assert offered("plan", "engine=triton", "engine.backend_") == ["engine.backend_directory="]
    assert offered("plan", "engine=nobody", "engine.progr") == ["engine.program="]
    assert offered("gateway", "up", "gateway.po") == ["gateway.port="]


def test_values_of_flags_are_offered_and_folders_are_left_to_the_shell() -> None:
    assert offered("plan", "--as", "") == ["docker-run"]
    assert offered("plan", "--as=") == ["--as=docker-run"]
    assert offered("completion", "") == [*SHELLS]
    assert offered("--config-dir", "") == offered("ps", "--config-dir", "") == []
    (artifacts_root(cache_root()) / "model-onnx-1").mkdir(parents=True)
    assert offered("artifact", "show", "") == ["model-onnx-1"]


def test_after_two_dashes_nothing_is_a_flag() -> None:
    assert offered("infer", "a", "--", "--json", "temp") == ["temperature="]


def test_a_damaged_record_is_no_obstacle() -> None:
    folder = state_root() / "deployments/odd"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "state.json")

    assert offered("stop", "") == ["odd"]


@pytest.mark.usefixtures("deployments")
def test_it_is_asked_at_each_tab_and_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Most of the time goes into loading: so nothing heavy is, nor the contract of engines for names and verbs."""
    heavy = {"hydra", "omegaconf", "argparse", "requests", "psutil", "yaml", "rich"}
    for words in (["stop", ""], ["engine="], [""]):
        code = f"import sys, launcher.cli.main as main\nassert main.run(['__complete', *{words!r}]) == 0"
        assert heavy & loaded_by(code) == set()
        light = f"{code}\nassert 'engines.base' not in sys.modules"
        subprocess.run([sys.executable, "-c", light], check=True)

    begun = time.process_time()
    assert answer(["stop", ""]) == 0
    assert time.process_time() - begun < 0.2
    assert capsys.readouterr().out == "alpha\tREADY\nnew\t\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_one_of_its_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    words = [sys.executable, "-m", "launcher", "completion", shell]
    script.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_that_has_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="shell 'bsh' not found; did you mean 'bash'\\? available: bash, zsh, fish"):
        main.run(["completion", "bsh"])


@pytest.mark.usefixtures("deployments")
@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (["engine", "=", "tri"], ["triton", "tritonserver"]),
        (["engine", "="], options("engine")),
        (["engine=tri"], ["engine=triton", "engine=tritonserver"]),
        (["up", "-d", "device", "=", "gpu", "engine", "=", "torch"], ["torchserve"]),
        (["engine", "=", ""], ["device=", "model=", "runtime=", "policy="]),
        (["plan", "--as", "="], ["docker-run"]),
        (["stop", "al"], ["alpha"]),
        (["artifact", "pr"], ["prune"]),
        (["logs", "alpha", "--f"], ["--follow"]),
        (["infer", "alpha", "a", ":", "b", "max_t"], ["max_tokens="]),
    ],
    ids=" ".join,
)
def test_bash_gets_what_it_replaces(words: list[str], reply: list[str]) -> None:
    """Bash parts words at = and :, and replaces the part before the cursor."""
    command = [shutil.which("bash") or "bash", "-c", DRIVEN, "bash", "rmlaunch", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)

    assert (done.stdout.split(), done.stderr) == (reply, "")


@pytest.mark.usefixtures("deployments")
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("rmlaunch plan engine=triton,tor", "rmlaunch plan engine=triton,torchserve "),
        ("rmlaunch stop al", "rmlaunch stop alpha "),
        ("rmlaunch supervise.max", "rmlaunch supervise.max_crashes="),
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_in_a_real_shell(shell: str, typed: str, becomes: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, setup = INTERACTIVE[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, {**os.environ, "TERM": "dumb", "HOME": str(tmp_path)})  # noqa: S606
    try:
        sum_ = "(math 40 + 2)" if shell == "fish" else "$((40 + 2))"  # the line itself is shown, and has no 42 in it
        os.write(terminal, f"{setup}; echo set-{sum_}\n".encode())
        heard(terminal, "set-42")
        os.write(terminal, f"{typed}\t".encode())
        heard(terminal, becomes)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def heard(terminal: int, words: str, timeout_s: float = 20.0) -> None:
    """Wait until the terminal has shown `words`."""
    shown, deadline = "", time.monotonic() + timeout_s
    while words not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
