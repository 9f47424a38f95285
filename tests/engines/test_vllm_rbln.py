"""Engine arguments for vLLM-RBLN, as whole values; test_vllm_rbln_real.py asks the real one about the same cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.base import Device, PlanError
from engines.rbln_vllm import device_count, engine_args, environment, flags
from tests.engines.vllm_rbln_cases import FOLDER, GOOD, WEIGHTS, Good, native, npus, options
from tests.engines.vllm_rbln_refusals import BAD, Bad


@pytest.mark.parametrize("case", GOOD, ids=[case.name for case in GOOD])
def test_arguments_are_complete(case: Good) -> None:
    assert engine_args(case.model, case.device, case.wanted) == {"model": case.model.path, **case.args}


@pytest.mark.parametrize("case", BAD, ids=map(str, BAD))
def test_what_cannot_work_is_refused_by_the_key_to_change(case: Bad) -> None:
    with pytest.raises(PlanError) as caught:
        engine_args(case.model, case.device, case.wanted)

    assert str(caught.value) == case.ours


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"tensor_parallel_size": 4}, "engine.tensor_parallel_size=4: "),
        ({"max_model_len": 8192, "block_size": 4095}, "engine.args.block_size=4095, but engine.max_model_len=8192 "),
        (options(foo=1), "engine.rbln.foo is no option"),
        (options(optimum_overrides={"batch_size": 2}), "engine.rbln.optimum_overrides.batch_size=2: set engine.seqs "),
    ],
)
def test_messages_name_the_key_that_the_user_set(wanted: dict[str, Any], words: str) -> None:
    keys = {
        "tensor_parallel_size": "engine.tensor_parallel_size",
        "max_model_len": "engine.max_model_len",
        "max_num_seqs": "engine.seqs",
        "additional_config": "engine.rbln",
    }
    with pytest.raises(PlanError) as caught:
        engine_args(WEIGHTS, npus(4), wanted, keys)

    assert str(caught.value).startswith(words)


def test_the_model_is_not_said_twice() -> None:
    with pytest.raises(PlanError) as caught:
        engine_args(WEIGHTS, npus(4), {"model": "/other"})

    assert str(caught.value) == "engine.args.model='/other': set model.source"


def test_the_vllm_path_is_taken_where_the_chip_is_not_known() -> None:
    assert engine_args(WEIGHTS, npus(1, None), native())["model_impl"] == "vllm"


def test_nothing_that_was_given_is_changed() -> None:
    wanted = {"seed": 7, "additional_config": {"sub_block_size": 256}}

    engine_args(WEIGHTS, npus(4), wanted)["additional_config"]["sub_block_size"] = 1
    engine_args(FOLDER, npus(4), wanted)["additional_config"]["sub_block_size"] = 1

    assert wanted == {"seed": 7, "additional_config": {"sub_block_size": 256}}


def test_options_become_flags_as_vllm_rbln_spells_them() -> None:
    asked = {
        "num_devices_per_local_rank": 4,
        "use_custom_sampler": False,
        "use_dynamic_kv_cache": True,
        "optimum_overrides": {"device": [0, 1]},
        "compile_dtype": "",
        "decode_batch_bucket_manual_buckets": [1, 4],
    }

    assert flags(asked) == [
        "--rbln-num-devices-per-local-rank", "4", "--no-rbln-use-custom-sampler", "--rbln-use-dynamic-kv-cache",
        "--rbln-optimum-overrides", '{"device": [0, 1]}', "--rbln-compile-dtype", "",
        "--rbln-decode-batch-bucket-manual-buckets", "1", "4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("requirements", "variables"),
    [
        (["vllm-rbln==0.12.0"], {}),
        (
            ["rebel-compiler==0.11.0"],
            {"RBLN_DEVICES": "0,1", "VLLM_RBLN_NUM_DEVICES_PER_LOCAL_RANK": "2"},
        ),
        (["rebel-compiler==0.10.4"], {"RBLN_DEVICES": "0,1", "VLLM_RBLN_TP_SIZE": "2"}),
    ],
)
def test_variables_have_the_names_of_the_sdk(requirements: list[str], variables: dict[str, str]) -> None:
    device = replace(npus(2), env={"RBLN_VISIBLE_DEVICES": "0,1"})

    assert environment(device, requirements) == {"VLLM_USE_V2_MODEL_RUNNER": "0", **variables}


def test_a_device_that_hides_nothing_gets_no_variable_that_does() -> None:
    assert environment(Device("rbln"), ["rebel-compiler==0.11.0"]) == {
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_RBLN_NUM_DEVICES_PER_LOCAL_RANK": "1",
    }


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, None),
        ({"tensor_parallel_size": None, "additional_config": None}, None),
        ({"tensor_parallel_size": 4}, 4),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2}, 8),
        (options(num_devices_per_local_rank=8), 8),
    ],
)
def test_parallel_sizes_say_how_many_npus_are_wanted(wanted: dict[str, Any], count: int | None) -> None:
    assert device_count(wanted) == count
