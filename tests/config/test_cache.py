"""Composed configs that are kept: used only where nothing that could matter has changed, and never with a secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import compose as composing
from launcher.config.cache import compose
from launcher.config.schema import TensorConf
from launcher.paths import cache_root

pytestmark = pytest.mark.usefixtures("_composed_anew")

MINE = """\
defaults: [base_model, _self_]
id: mine
source: pypi:x==1!x/m.gguf
task: generate
context_length: 64
dtype: bfloat16
chat: true
"""


def kept() -> list[Path]:
    return sorted((cache_root() / "configs").glob("*.json"))


@pytest.mark.parametrize("words", [["engine=triton", "port=8100"], ["engine=llamacpp"], ["model=llama3-8b"], []])
def test_a_kept_config_is_the_one_that_composing_gives(words: list[str]) -> None:
    first = compose(words)
    assert len(kept()) == 1

    again = compose(words)

    assert again == first == composing.compose(words)
    assert type(again.engine) is type(first.engine)


@pytest.mark.parametrize("engine", ["triton", "llamacpp"])
def test_the_second_time_needs_no_hydra(engine: str) -> None:
    compose([f"engine={engine}"])
    script = (
        "import sys; from launcher.config.cache import compose; "
        f"compose(['engine={engine}']); print('hydra' in sys.modules, 'omegaconf' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)

    assert done.stdout.split() == ["False", "False"]


def test_a_changed_file_is_composed_anew(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    mine = tmp_path / "model/mine.yaml"
    mine.write_text(MINE)
    assert compose(["model=mine"], str(tmp_path)).model.context_length == 64

    mine.write_text(MINE.replace("64", "128"))

    assert compose(["model=mine"], str(tmp_path)).model.context_length == 128


def test_what_looks_outside_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(MINE.replace("id: mine", "id: ${oc.env:WHO}"))
    for who in ("a", "b"):
        monkeypatch.setenv("WHO", who)
        assert compose(["model=mine"], str(tmp_path)).model.id == who
        assert compose(["name=${oc.env:WHO}"]).name == who

    assert kept() == []


@pytest.mark.parametrize(
    "word",
    [
        "api_key=hunter2",
        "++engine.env.MY_TOKEN=hunter2",
        "++engine.args.api_key=hunter2",
        "++engine.environments.cpu.indexes=['https://me:hunter2@example.com/simple']",
        "++model.engine_args.llamacpp.api_key=hunter2",
    ],
)
def test_a_secret_is_never_kept(word: str) -> None:
    assert "hunter2" in str(compose(["engine=llamacpp", word]))

    assert kept() == []


def test_a_damaged_file_is_composed_anew() -> None:
    first = compose(["engine=triton"])
    kept()[0].write_text('{"engine": "triton", "config": {}}')

    assert compose(["engine=triton"]) == first


def test_a_cache_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_CACHE", "/proc/nowhere")

    assert compose(["engine=triton"]).engine.name == "triton"


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.config.cache._KEPT", 3)
    for port in range(8000, 8005):
        compose([f"port={port}"])

    assert len(kept()) == 3


def test_a_signature_comes_back_as_it_was() -> None:
    tensors = "[{name: x, dtype: float32, shape: [-1, 4]}]"
    words = ["engine=triton", "model.task=tensor", f"model.inputs={tensors}", f"model.outputs={tensors}"]

    first, second = compose(words), compose(words)

    assert len(kept()) == 1
    assert second == first
    assert second.model.inputs == [TensorConf("x", "float32", [-1, 4])]


def test_what_a_killed_command_was_writing_is_swept() -> None:
    compose(["engine=triton"])
    half = kept()[0].with_name(".0123.json.4194305-7")
    half.touch()

    compose(["engine=llamacpp"])

    assert not half.exists()
