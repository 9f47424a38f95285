"""The command as people run it: exit codes, one-line errors, data on stdout and the rest on stderr."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.compose import options
from tests.supervision import free_port


def rmlaunch(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done


def refusal(*words: str) -> str:
    """The error of a command that is refused: its exit code is 2, and stdout has nothing."""
    done = rmlaunch(*words)
    reasons, error = done.stderr.splitlines()[:-1], done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert all(re.match(r"(device|engine|runtime)=auto → ", line) for line in reasons), done.stderr
    return error


@pytest.mark.parametrize("words", [["--help"], ["plan", "engine=tritn"], ["--cfg"], ["ps"]], ids=" ".join)
def test_the_package_runs_as_the_command(words: list[str], tmp_path: Path) -> None:
    """Hydra's own error for --cfg without a value shows the program's name."""
    script = Path(sys.executable).parent / "rmlaunch"
    of_both = [
        subprocess.run([*command, *words], capture_output=True, text=True, timeout=25, check=False, cwd=tmp_path)
        for command in ([script], [sys.executable, "-m", "launcher"])
    ]

    by_script, by_module = ((done.returncode, done.stdout, done.stderr) for done in of_both)
    assert by_module == by_script


@pytest.mark.parametrize("verb", [(), ("plan",)])
def test_an_unknown_engine_names_the_nearest(verb: tuple[str, ...]) -> None:
    known = ", ".join(options("engine"))

    assert refusal(*verb, "engine=tritn") == (
        f"error: engine 'tritn' not found; did you mean 'triton'? available: {known}"
    )


def test_hardware_that_is_not_here_says_what_was_looked_for_and_that_a_plan_works() -> None:
    error = refusal("engine=triton", "device=rbln", "model=llama3-8b")

    assert re.match(r"error: no (rbln|RBLN)\b.* found: looked for ", error)
    assert "/dev/rbln0" in error
    assert "`rmlaunch plan` with the same words" in error
    planned = rmlaunch("plan", "engine=triton", "device=rbln", "model=llama3-8b")
    assert planned.returncode == 0
    assert "\n4 × RBLN-CA25 as published for llama3-8b" in planned.stderr


def test_a_port_that_is_taken_names_who_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        error = refusal("engine=llamacpp", "device=cpu", f"port={port}")

    assert error.startswith(f"error: port={port} is in use by pid {os.getpid()} (")
    assert error.endswith("); choose another or leave port out")
    assert not (tmp_path / "state/deployments").exists(), "a refused launch has left a deployment"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["frobnicate"], r"error: verb 'frobnicate' not found; available: .*plan.*; overrides are written key=value"),
        (["pln"], r"error: verb 'pln' not found; did you mean 'plan'\? available: .*"),
        (["--frobnicate"], r"error: unknown flag '--frobnicate'; see rmlaunch --help"),
        (["plan", "--jsn"], r"error: unknown flag '--jsn'; did you mean '--json'\? see rmlaunch plan --help"),
        (["ps", "--frobnicate"], r"error: unknown flag '--frobnicate'; see rmlaunch ps --help"),
        (["ps", "everything"], r"error: 'everything' is one word too many; see rmlaunch ps --help"),
        (["metrics", "a", "--json"], r"error: unknown flag '--json'; see rmlaunch metrics --help"),
        (["ps", "--json", "--all", "--json"], r"error: --json is given twice; leave one out"),
        (["logs", "a", "-n", "1", "--lines=2"], r"error: --lines is given twice; leave one out"),
        (["logs", "a", "-n"], r"error: -n/--lines: expected one argument; see rmlaunch logs --help"),
        (["logs", "a", "-n", "-1"], r"error: -n -1 must not be negative"),
        (["ps", "--json", "--watch"], r"error: --json and --watch do not go together; leave one out"),
        (["up", "--replace", "engine=llamacpp"], r"error: --replace goes with -d; add -d, or leave --replace out"),
        (["infer", "a", "hello", "max_tokens=1", "max_tokens=2"], r"error: max_tokens= is given twice; leave one out"),
        (["--config-dir", "ps"], r"error: --config-dir 'ps' is not a folder; .*"),
        (["ps", "--config-dir", "/nowhere"], r"error: --config-dir '/nowhere' is not a folder; .*"),
        (["-cd", "/tmp", "ps", "--config-dir", "/tmp"], r"error: --config-dir is given twice; leave one out"),
        (["-cd", "/tmp", "engine=llamacpp", "-cd=/tmp"], r"error: -cd is given twice; leave one out"),
        (["gateway"], r"error: gateway needs a verb: rmlaunch gateway up \| key; see rmlaunch gateway --help"),
        (["gateway", "keys"], r"error: gateway verb 'keys' not found; did you mean 'key'\? available: up, key"),
        (["--version", "ps"], r"error: --version goes alone; leave out 'ps'"),
        (["ps", "--version"], r"error: unknown flag '--version'; did you mean '--json'\? see rmlaunch ps --help"),
        (["plan", "prt=1"], r"error: unknown key 'prt'; did you mean 'port'\? keys: .*"),
        (["plan", "port=abc"], r"error: port: .*'abc'.*"),
        (["plan", "engine"], r"error: cannot read 'engine'; an override is written key=value .*"),
        (["plan", "engine=llamacpp", "device=rbln"],
         r"error: engine=llamacpp cannot use device=rbln; it can use: cpu, gpu"),
        (["plan", "host=0.0.0.0", "engine=llamacpp"],
         r"error: host='0.0.0.0' can be reached from outside; set api_key, or use host=127.0.0.1"),
        (["plan", "model.source=nowhere"], r"error: model.source='nowhere' is not understood; .*"),
        (["plan", "--config-dir", "/nowhere"], r"error: --config-dir '/nowhere' is not a folder; .*"),
        (["plan", "device=cpu", "device.ids=[7]"], r"error: device.ids=\[7\]: this machine has no cpu \[7\]; .*"),
        (["plan", "--cfg", "job"], r"error: plan is rmlaunch's and --cfg is Hydra's; they do not go together"),
        (["plan", "engine.workers=3"],
         r"error: unknown key 'engine.workers'; .*; with engine=auto only these can be set, so choose engine=…"),
        (["plan", "engine=llamacpp", "grpc_port=9000"],
         r"error: grpc_port=9000, but engine=llamacpp has no such port; leave it out"),
        (["plan", "engine.name=triton"],
         r"error: engine.name follows from the option that is chosen; write engine=triton"),
        (["-m", "engine=llamacpp", "api_key=sesame"],
         r"error: api_key: Hydra would write it to its folder; give it as api_key='\$\{oc.env:NAME\}'"),
        (["--cfg", "job", "engine=tritn"], r"error: engine 'tritn' not found; did you mean 'triton'\? .*"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(words: list[str], error: str) -> None:
    assert re.fullmatch(error, refusal(*words))


@pytest.mark.parametrize(
    "words",
    [
        ["port=70000"],  # ports.py: is_free
        ["device=cpu", "device.count=-1"],  # resolve.py: _ids
        ["engine=triton", "device=rbln", "model.build.rbln.num_devices=many"],  # resolve.py: _ids
        ["engine.name=triton"],  # engines/triton.py: options are missing under another engine's schema
        ["model.id=../../x"],  # resolve.py: becomes part of paths unchecked
        ["--config-dir"],  # cli.py: _split takes the missing value for ""
    ],
    ids=" ".join,
)
def test_a_value_that_cannot_be_is_refused(words: list[str]) -> None:
    refusal("plan", *words)


def test_plan_json_prints_only_json_on_stdout() -> None:
    port = free_port()
    done = rmlaunch("plan", "--json", "model=smollm2", f"port={port}")

    plan = json.loads(done.stdout)
    assert done.returncode == 0
    assert plan["endpoints"]["http"] == f"http://127.0.0.1:{port}"
    assert [line.partition(" → ")[0] for line in done.stderr.splitlines()] == [
        "device=auto",
        "engine=auto",
        "runtime=auto",
    ]


def test_plan_without_auto_says_nothing_on_stderr() -> None:
    done = rmlaunch("plan", "engine=triton", "device=cpu", "runtime=process")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("name         triton-cpu-smollm2\nengine       triton on cpu [0]\n")


def test_a_plan_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()

    rmlaunch("plan", "engine=triton", "device=cpu", cwd=tmp_path / "here")

    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    kept = (Path("cache/configs"), Path("cache/entry-points.json"))  # what was composed, and which plugins there are
    assert [path for path in written if path not in kept and path.parent not in kept] == []


def test_help_lists_the_options_of_every_group() -> None:
    done = rmlaunch("--help")

    assert (done.returncode, done.stderr) == (0, "")
    for group in ("engine", "device", "model", "runtime"):
        assert f"  {group:<8} {', '.join(options(group))}\n" in done.stdout


def test_hydras_own_flags_work(tmp_path: Path) -> None:
    done = rmlaunch("--cfg", "job", "engine=llamacpp", "engine.args.mine=1", cwd=tmp_path)

    assert done.returncode == 0
    assert "  name: llamacpp\n" in done.stdout
    assert "    mine: 1\n" in done.stdout


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [
        sys.executable,
        "-m",
        "launcher",
        "plan",
        "--json",
        "engine=triton",
        "device=cpu",
        "runtime=process",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()

        assert process.stderr.read() == ""
        assert process.wait(20) == 141


@pytest.mark.parametrize("variable", ["RMLAUNCH_STATE", "RMLAUNCH_CACHE"])
def test_a_folder_that_cannot_be_used_is_told_in_one_line(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    command = [sys.executable, "-m", "launcher", "engine=llamacpp", "device=cpu", "prompt=hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be used" in done.stderr
    assert "RMLAUNCH_STATE and RMLAUNCH_CACHE name other folders" in done.stderr
