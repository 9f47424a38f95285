"""A closed compiler by its declaration: what is run, what it says of itself, and its failures in its own words."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import BuildProfile, BuildStep, ConfigError, Environment, PrepareError
from launcher.config.sdk import CompilerConf
from launcher.planning.compiler import BinaryCompilerAdapter
from launcher.planning.conversions import reachable, steps
from launcher.planning.workshop import Workshop
from launcher.prepare import artifacts
from launcher.prepare.builds import run
from launcher.progress import Progress
from tests.vendor_npu import BIAS, WEIGHT, sdk, weights

QUIET = Progress(quiet=True)
HERE = Environment("current", sys.prefix, "3.11", managed=False)


def adapter(**changes: Any) -> BinaryCompilerAdapter:
    acme = sdk()
    assert acme.compiler is not None
    return BinaryCompilerAdapter(dataclasses.replace(acme, compiler=dataclasses.replace(acme.compiler, **changes)))


def shop(tmp_path: Path, compiler: BinaryCompilerAdapter, **changes: Any) -> Workshop:
    given: dict[str, Any] = {
        "cache": tmp_path / "cache", "templates": Path("/templates"), "model_id": "linear", "identity": "w1",
        "context_length": 128, "dtype": "float32", "product": "NPU-T1", "device_count": 2, "settings": {},
        "converter": HERE, "exporter": HERE, "serving": HERE, "compiler": compiler, "compiler_version": "1.4.0",
    }  # fmt: skip
    return Workshop(**{**given, **changes})


def step_of(tmp_path: Path, source: str = "/w.safetensors", **changes: Any) -> BuildStep:
    reached, (step,) = steps("safetensors", ("npu",), source, shop(tmp_path, adapter(), **changes))
    assert reached == "npu"
    return step


def test_the_step_is_what_was_declared_with_its_words_filled_in(tmp_path: Path, vendor: Path) -> None:
    step = step_of(tmp_path, settings={"activation": "relu"})

    argv = ("npucc", "--target", "NPU-T1", "--devices", "2", "--config", "{files}/npucc.conf",
            "-o", "{output}/model.npu")  # fmt: skip
    assert step == BuildStep(
        name="npucc-compile",
        argv=(*argv, "/w.safetensors"),
        output=step.output,
        environment=HERE,
        env={"NPU_ROOT": f"{vendor}/dev"},
        files={"npucc.conf": "activation = relu\ndebug_trap = off\n"},
        made="model.npu",
        model_id="linear",
        profile=BuildProfile(
            "NPU-T1",
            "npucc",
            "1.4.0",
            {"argv": [*argv, "{source}"], "env": dict(step.env), "files": dict(step.files)},
            "npu",
        ),
        meanings=step.meanings,
    )
    assert step.model_path == f"{step.output}/model.npu"
    assert step.meanings["3"] == "the compiler does not support this graph"


@pytest.mark.parametrize(
    "changes",
    [{"identity": "w2"}, {"product": "NPU-T2"}, {"device_count": 1}, {"settings": {"activation": "relu"}},
     {"compiler_version": "1.5.0"}],
    ids=str,
)  # fmt: skip
def test_another_ingredient_is_another_artifact(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert step_of(tmp_path).output != step_of(tmp_path, **changes).output


def test_where_the_source_lies_does_not_matter(tmp_path: Path) -> None:
    assert step_of(tmp_path).output == step_of(tmp_path, "/elsewhere/w.safetensors").output


def test_a_step_may_follow_another(tmp_path: Path) -> None:
    reached, made = steps("gguf", ("npu",), "/w.gguf", shop(tmp_path, adapter()))

    assert (reached, [step.name for step in made]) == ("npu", ["gguf-to-safetensors", "npucc-compile"])
    assert made[1].argv[-1] == made[0].output
    assert "npu" in reachable("gguf", ["safetensors"])
    assert "npu" not in reachable("gguf")


# ------------------------------------------------------------------------------------------- the real, closed, compiler


def test_it_is_asked_for_its_version(vendor: Path) -> None:  # noqa: ARG001
    assert adapter().version(HERE) == "1.4.0"
    assert adapter(version="1.4.0").version(HERE) == "1.4.0"
    with pytest.raises(ConfigError, match=r"^device\.sdk\.compiler\.version='2\.0\.0', but npucc is 1\.4\.0; install"):
        adapter(version="2.0.0").version(HERE)


def test_one_that_is_not_here_has_the_version_that_is_pinned() -> None:
    assert adapter().version(HERE) == ""
    assert adapter(version="1.4.0").version(HERE) == "1.4.0"
    assert adapter().missing(HERE) == (
        "there is no program 'npucc'; install the compiler, or name it in device.sdk.compiler.argv"
    )
    not_made = Environment("triton-npu", "/not/made/yet", "3.11")
    assert adapter().missing(not_made) == ""  # it may come with the packages


def test_a_version_that_cannot_be_read_shows_what_was_said(vendor: Path) -> None:
    assert adapter().missing(HERE) == ""
    with pytest.raises(ConfigError, match=r"does not match what npucc --version says: npucc 1\.4\.0 \(closed source\)"):
        adapter(version_pattern=r"release (\d+)").version(HERE)
    with pytest.raises(ConfigError, match="needs a group for the version"):
        adapter(version_pattern=r"npucc").version(HERE)
    with pytest.raises(ConfigError, match="unterminated"):
        adapter(version_pattern=r"(npucc").version(HERE)
    broken = vendor / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(PrepareError, match=r"version_argv=.*Exec format error"):
        adapter(version_argv=[str(broken)]).version(HERE)


def test_it_compiles_and_its_words_are_kept(tmp_path: Path, vendor: Path) -> None:  # noqa: ARG001
    source = weights(tmp_path / "linear.safetensors", weight=WEIGHT, bias=BIAS)
    step = step_of(tmp_path, str(source), settings={"activation": "relu"})

    run(step, QUIET)

    data = Path(step.model_path).read_bytes()
    magic, major, minor, flags, width, height, devices = struct.unpack("<4sHHIIII", data[:24])
    assert (magic, major, minor, flags, width, height, devices) == (b"NPU1", 1, 4, 1, 3, 2, 2)
    np.testing.assert_array_equal(np.frombuffer(data[-32:], "<f4"), [*WEIGHT.ravel(), *BIAS])
    (found,) = artifacts.found(tmp_path / "cache/artifacts")
    assert found.log.read_text() == "npucc: linear 3 -> 2 for 2 x NPU-T1\n"
    assert found.profile == step.profile


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        (
            {"kernel": WEIGHT},
            {},
            ("3: the compiler does not support this graph", "the graph has no float32 tensor weight"),
        ),
        ({"weight": WEIGHT}, {"product": "T9"}, ("4: the compiler does not know this product", "unknown target T9")),
        (
            {"weight": WEIGHT},
            {"settings": {"activation": "gelu"}},
            ("2: the command line or its config is wrong", "unknown setting activation"),
        ),
    ],
    ids=["graph", "target", "config"],
)
@pytest.mark.usefixtures("vendor")
def test_its_failure_is_told_in_its_own_words(
    tmp_path: Path, tensors: dict[str, Any], changes: dict[str, Any], words: tuple[str, str]
) -> None:
    step = step_of(tmp_path, str(weights(tmp_path / "w.safetensors", **tensors)), **changes)

    meaning, said = words
    wanted = rf"^build step npucc-compile exited {meaning} \(log: .*\):\n  npucc: error: {said}$"
    with pytest.raises(PrepareError, match=wanted):
        run(step, QUIET)
    assert artifacts.found(tmp_path / "cache/artifacts") == []


# --------------------------------------------------------------------------------------- declarations that cannot be


def test_a_word_that_means_nothing_is_refused_with_those_that_do(tmp_path: Path) -> None:
    for changes in ({"argv": ["npucc", "{sauce}"]}, {"files": {"c": "{sauce}"}}, {"env": {"E": "{sauce}"}}):
        with pytest.raises(ConfigError, match=r"\{sauce\} means nothing; known: \{output\}, \{files\}, \{activation\}"):
            steps("safetensors", ("npu",), "/w", shop(tmp_path, adapter(**changes)))


@pytest.mark.parametrize("output", ["/abs/model.npu", "../model.npu", ""])
def test_what_it_makes_lies_in_its_folder(output: str) -> None:
    with pytest.raises(ConfigError, match=r"must be the path of a file below \{output\}"):
        adapter(output=output)


def test_a_command_that_is_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device\.sdk\.compiler\.argv is empty"):
        adapter(argv=[])


def test_no_shell_reads_it(tmp_path: Path) -> None:
    conf = CompilerConf(
        argv=[sys.executable, "-c", "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))",
              "{output}/m.npu", "$(touch x); `id`", "{model_id} && true", "*"],
        reads=["safetensors"], output="m.npu",
    )  # fmt: skip
    compiler = BinaryCompilerAdapter(dataclasses.replace(sdk(), compiler=conf))
    _, (step,) = steps("safetensors", ("npu",), "/w", shop(tmp_path, compiler))

    run(step, QUIET)

    assert json.loads(Path(step.model_path).read_text()) == ["$(touch x); `id`", "linear && true", "*"]
