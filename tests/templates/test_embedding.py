"""What a folder says about its embeddings; and, in an environment that has torch, what comes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from embedding import Recipe

from launcher.paths import cache_root
from launcher.planning import environments
from launcher.planning.machine import this_machine
from launcher.planning.settle import settle
from launcher.prepare.environments import ensure
from launcher.progress import Progress

TRANSFORMER, POOLING, NORMALIZE = (
    {"path": path, "type": f"sentence_transformers.models.{name}"}
    for path, name in (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
)
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def folder(root: Path, *modules: dict[str, str], pooling: dict[str, Any] = MEAN, **files: Any) -> Path:
    (root / "1_Pooling").mkdir()
    written = {"1_Pooling/config.json": pooling, **{f"{name}.json": text for name, text in files.items()}}
    if modules:
        written["modules.json"] = list(modules)
    for name, content in written.items():
        (root / name).write_text(json.dumps(content))
    return root


def test_a_folder_that_says_nothing_gives_the_normalised_mean(tmp_path: Path) -> None:
    assert Recipe.of(folder(tmp_path)) == Recipe("mean", normalize=True)


def test_a_sentence_transformers_folder_is_followed(tmp_path: Path) -> None:
    limits = {"max_seq_length": 256, "do_lower_case": True}
    root = folder(tmp_path, TRANSFORMER, POOLING, NORMALIZE, sentence_bert_config=limits)

    assert Recipe.of(root) == Recipe("mean", normalize=True, max_length=256, lower_case=True)


def test_without_a_normalize_module_lengths_are_kept(tmp_path: Path) -> None:
    assert Recipe.of(folder(tmp_path, TRANSFORMER, POOLING)) == Recipe("mean", normalize=False)


def test_a_default_prompt_stands_before_every_text(tmp_path: Path) -> None:
    said = {"prompts": {"query": "query: ", "text": "text: "}, "default_prompt_name": "query"}
    root = folder(tmp_path, TRANSFORMER, POOLING, config_sentence_transformers=said)

    assert Recipe.of(root).prompt == "query: "


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "cls", "embedding_dimension": 4}, "cls"),  # since sentence-transformers 6
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_every_spelling_of_a_pooling_mode(tmp_path: Path, pooling: dict[str, Any], mode: str) -> None:
    assert Recipe.of(folder(tmp_path, TRANSFORMER, POOLING, pooling=pooling)).pooling == mode


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ((TRANSFORMER, POOLING, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}), MEAN, "has Dense"),
        ((TRANSFORMER,), MEAN, "has no Pooling"),
        ((TRANSFORMER, POOLING), {"pooling_mode_mean_sqrt_len_tokens": True}, "asks for pooling mean_sqrt_len; known"),
        ((TRANSFORMER, POOLING), {**MEAN, "pooling_mode_max_tokens": True}, r"asks for pooling mean \+ max"),
        ((TRANSFORMER, POOLING), {"pooling_mode_mean_tokens": False}, "asks for pooling of no kind"),
    ],
)
def test_what_is_not_known_is_refused_and_not_left_out(
    tmp_path: Path, modules: tuple[dict[str, str], ...], pooling: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe.of(folder(tmp_path, *modules, pooling=pooling))


_POOL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from embedding import _POOLINGS
states = torch.tensor([[[1.0, -8.0], [3.0, -2.0], [5.0, -5.0]], [[2.0, 9.0], [70.0, 70.0], [90.0, 90.0]]])
mask = torch.tensor([[1, 1, 1], [1, 0, 0]])  # the second text has one token, and padding
print(json.dumps({name: pool(states, mask).tolist() for name, pool in _POOLINGS.items()}))
"""


@pytest.mark.real
@pytest.mark.timeout(900)
def test_padding_is_in_no_vector() -> None:
    converter = settle(["engine=triton", "device=cpu"], this_machine()).config.builders["convert"]
    environment = environments.describe("convert", "managed", converter, cache_root())
    ensure(environment, Progress(quiet=True))
    templates = Path(__file__).parents[2] / "templates/models"
    command = [f"{environment.bin}/python", "-c", _POOL, str(templates)]

    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert json.loads(answer) == {
        "mean": [[3, -5], [2, 9]],
        "max": [[5, -2], [2, 9]],
        "cls": [[1, -8], [2, 9]],
        "lasttoken": [[5, -5], [2, 9]],
    }
