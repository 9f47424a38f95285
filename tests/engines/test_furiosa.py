"""Furiosa-LLM's plan as whole values, and its words before the wheel's own parsers. No NPU is here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.base import (
    BuildStep,
    Device,
    Endpoint,
    Endpoints,
    Environment,
    HttpCheck,
    Model,
    PlanError,
    Probes,
    ProbeSettings,
    ServeSpec,
)
from engines.furiosa import OURS, SWITCHES, TOGGLES, VALUES, VERSION, Furiosa, FuriosaOptions
from launcher.prepare import environments
from launcher.progress import Progress

ENVIRONMENT = Environment("furiosa", "/env", "3.11", requirements=(f"furiosa-llm=={VERSION}",))
UNSET = dataclasses.asdict(FuriosaOptions())


def spec(**changes: Any) -> ServeSpec:
    own = {key: changes.pop(key) for key in tuple(changes) if key in UNSET}
    values: dict[str, Any] = {
        "name": "f",
        "engine": "furiosa",
        "device": Device("furiosa", (0, 3), "RNGD"),
        "model": Model("m", "hf:o/m@main", "safetensors", "/weights", context_length=8192, identity="hf:o/m@main"),
        "runtime": "process",
        "environment": ENVIRONMENT,
        "bind": "127.0.0.1",
        "ports": (8000,),
        "run_dir": "/run",
        "artifacts": "/artifacts",
        "options": {**UNSET, **own},
        "templates": {"serve.py": "# serve\n"},
    }
    return ServeSpec(**{**values, **changes})


def test_the_model_is_compiled_once_and_served_on_the_named_npus() -> None:
    plan = Furiosa().plan(spec())

    (step,) = plan.builds
    assert step == BuildStep(
        name="safetensors-to-fxb",
        argv=("/env/bin/fxb", "build", "/weights", "{output}/model.fxb", "--max-model-len", "8192"),
        output=step.output,
        environment=ENVIRONMENT,
        env={"HF_HUB_OFFLINE": "1"},
        model_id="m",
        profile=step.profile,
    )
    assert step.profile is not None
    assert (step.profile.compiler, step.profile.interface) == ("fxb", "fxb")
    assert step.output.startswith("/artifacts/m-fxb-")
    assert plan.argv == (
        "/env/bin/furiosa-llm", "serve", "/weights", "--fxb", f"{step.output}/model.fxb", "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", "8000", "--devices", "npu:0,npu:3",
    )  # fmt: skip
    http = Endpoint("127.0.0.1", 8000)
    assert plan.endpoints == Endpoints(http, metrics="http://127.0.0.1:8000/metrics")
    body = {"model": "m", "prompt": "a", "max_tokens": 1}
    assert plan.probes == Probes(
        startup=HttpCheck("/health"),
        readiness=HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens"),
        liveness=HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens"),
        settings=ProbeSettings(),
    )
    assert (plan.env, plan.files) == ({"HF_HUB_OFFLINE": "1"}, {})


def test_every_setting_is_a_flag_of_the_command_that_has_it() -> None:
    plan = Furiosa().plan(
        spec(
            tensor_parallel_size=8, pipeline_parallel_size=2, data_parallel_size=1, max_model_len=4096,
            max_num_batched_tokens=2048, max_concurrency=16, enable_prefix_caching=False, chat_template="/t.jinja",
            tool_call_parser="hermes", reasoning_parser="qwen3", scheduler_kind="k", optim_level="O1",
            build_concurrency=4, args={"max_io_memory_mb": 512, "disable_log_stats": True, "npu_queue_limit": None,
                                       "interleave_mm_strings": False, "enable_overlap_scheduling": False},
        )
    )  # fmt: skip

    assert plan.builds[0].argv[4:] == (
        "--tensor-parallel-size", "8", "--pipeline-parallel-size", "2", "--max-model-len", "8192",
        "--optim-level", "O1", "--concurrency", "4",
    )  # fmt: skip
    assert plan.argv[plan.argv.index("--devices") + 2 :] == (
        "--pipeline-parallel-size", "2", "--data-parallel-size", "1", "--max-model-len", "4096",
        "--max-num-batched-tokens", "2048", "--max-concurrency", "16", "--no-enable-prefix-caching",
        "--chat-template", "/t.jinja", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3",
        "--scheduler-kind", "k", "--enable-auto-tool-choice", "--max-io-memory-mb", "512", "--disable-log-stats",
        "--no-enable-overlap-scheduling",
    )  # fmt: skip


def test_a_bundle_of_the_users_own_is_not_compiled_again() -> None:
    plan = Furiosa().plan(spec(fxb="/mine.fxb"))

    assert plan.builds == ()
    assert plan.argv[3:5] == ("--fxb", "/mine.fxb")


def test_what_a_bundle_depends_on_names_it() -> None:
    def output(**changes: Any) -> str:
        return Furiosa().plan(spec(**changes)).builds[0].output

    newer = Environment("furiosa", "/env2", "3.11", requirements=("furiosa-llm==2027.1.0",))
    others = {
        output(tensor_parallel_size=4),
        output(optim_level="O0"),
        output(environment=newer),
        output(device=Device("furiosa", (0,), "OTHER")),
        output(model=Model("m", "s", "safetensors", "/weights", context_length=4096, identity="hf:o/m@main")),
        output(model=Model("m", "s", "safetensors", "/weights", context_length=8192, identity="hf:o/m@other")),
    }

    assert len(others | {output()}) == 7
    assert output() == output(max_concurrency=4, build_concurrency=8, ports=(9000,))


def test_an_embedding_model_is_compiled_and_proved_as_one() -> None:
    plan = Furiosa().plan(spec(model=Model("m", "s", "safetensors", "/w", task="embed")))

    assert plan.builds[0].argv[-2:] == ("--convert", "embed")
    assert (plan.probes.readiness.path, plan.probes.readiness.expect) == ("/v1/embeddings", "data.0.embedding")


def test_a_key_is_in_the_environment_and_never_in_argv() -> None:
    plan = Furiosa().plan(spec(api_key="sesame"))

    assert plan.argv[:3] == ("/env/bin/python", "/run/serve.py", "/weights")
    assert plan.files == {"serve.py": "# serve\n"}
    assert plan.env == {"HF_HUB_OFFLINE": "1", "FURIOSA_LLM_API_KEY": "sesame"}
    assert "sesame" not in plan.argv


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, None),
        ({"data_parallel_size": 2}, 2),
        ({"pipeline_parallel_size": 2, "data_parallel_size": 2}, 4),
        ({"tensor_parallel_size": 4}, 1),
        ({"tensor_parallel_size": 4, "data_parallel_size": 4}, 2),
        ({"tensor_parallel_size": 32}, 4),
    ],
)
def test_cards_are_counted_by_their_processing_elements(options: dict[str, int], count: int | None) -> None:
    assert Furiosa().device_count("furiosa", {**UNSET, **options}) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"args": {"tensor_parallel_size": 8}}, "use engine.tensor_parallel_size, because it is fixed when"),
        ({"args": {"devices": "npu:0"}}, "engine.args.devices: use device.ids"),
        ({"args": {"max_io_memory": 1}}, "has no such flag; did you mean 'max_io_memory_mb'"),
        ({"args": {"zzz": 1}}, "has no such flag; it has: allowed_local_media_path, "),
        ({"args": {"disable_log_stats": 1}}, "engine.args.disable_log_stats=1: this flag takes true or false"),
        ({"args": {"npu_queue_limit": True}}, "engine.args.npu_queue_limit=True: this flag takes a value"),
        ({"api_key": "k", "program": "/p"}, "api_key needs the Python of furiosa-llm"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Furiosa().plan(spec(**changes))


#: prints the flags of the real parsers, and parses the lines that come on stdin with them. What the parsers of the
#: wheel import beside argparse needs its compiled parts, so the one module of it is left out.
PARSE = """
import argparse, json, sys, types
left_out = types.ModuleType("furiosa_llm.mm_options")
for name in ("validate_media_io_kwargs", "validate_mm_processor_kwargs", "validate_modality_kwargs"):
    setattr(left_out, name, lambda value, **_: value)
sys.modules[left_out.__name__] = left_out
from furiosa_llm.cli.fxb_build import add_fxb_build_args
from furiosa_llm.cli.serve import add_serve_args
parsers = {"serve": argparse.ArgumentParser(), "build": argparse.ArgumentParser()}
add_serve_args(parsers["serve"])
add_fxb_build_args(parsers["build"])
flags = {}
for action in parsers["serve"]._actions:
    name = max(action.option_strings, key=len, default="").removeprefix("--no-").lstrip("-").replace("-", "_")
    flags[name] = type(action).__name__
parsed = [vars(parsers[verb].parse_args(words)) for verb, words in json.load(sys.stdin)]
for values in parsed:
    del values["dispatch_function"]
print(json.dumps([flags, parsed]))
"""


@pytest.mark.real
@pytest.mark.timeout(120)
def test_the_wheels_own_parsers_know_our_flags_and_read_our_words_as_meant(tmp_path: Path) -> None:
    wheel = ["pip", "install", "--no-deps", "--target", str(tmp_path), f"furiosa-llm=={VERSION}"]
    environments.uv(wheel, "could not fetch furiosa-llm", Progress(quiet=True))
    plan = Furiosa().plan(
        spec(tensor_parallel_size=8, enable_prefix_caching=False, tool_call_parser="hermes", max_concurrency=4,
             args={"default_chat_template_kwargs": {"enable_thinking": False}, "allowed_media_domains": ["a", "b"],
                   "disable_log_stats": True})
    )  # fmt: skip
    words = json.dumps([["serve", plan.argv[2:]], ["build", plan.builds[0].argv[2:]]])
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flags, (serve, build) = json.loads(done.stdout)

    kinds = {name: {flag for flag, kind in flags.items() if kind == name} for name in set(flags.values())}
    ours = set(OURS) - {"tensor_parallel_size"}
    assert kinds["BooleanOptionalAction"] - ours == TOGGLES
    assert kinds["_StoreTrueAction"] - ours == SWITCHES
    # The first alias is written out here; the mock backend is for the vendor's own tests.
    named = {"experimental_spec_config": "experimental_speculative_config"}
    assert {named.get(flag, flag) for flag in kinds["_StoreAction"]} - ours - {"", "use_mock_backend"} == VALUES
    assert ours <= set(flags)
    expected = {
        "model": "/weights", "fxb": f"{plan.builds[0].output}/model.fxb", "served_model_name": "m",
        "host": "127.0.0.1", "port": 8000, "devices": "npu:0,npu:3", "enable_prefix_caching": False,
        "enable_auto_tool_choice": True, "tool_call_parser": "hermes", "max_concurrency": 4,
        "default_chat_template_kwargs": {"enable_thinking": False}, "allowed_media_domains": ["a", "b"],
        "disable_log_stats": True, "api_key": None,
    }  # fmt: skip
    assert {key: serve[key] for key in expected} == expected
    assert (build["model"], build["output_path"]) == ("/weights", "{output}/model.fxb")
    assert (build["tensor_parallel_size"], build["max_model_len"]) == (8, 8192)
