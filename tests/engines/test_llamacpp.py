"""llama.cpp's plan, as whole values."""

from __future__ import annotations

from engines.base import Device, Model
from engines.llamacpp import LlamaCpp
from tests.engines.specs import llamacpp_spec


def test_the_plan_is_llama_servers_command_line_inside_the_environment() -> None:
    plan = LlamaCpp().plan(llamacpp_spec(args={"ctx_size": 4096, "kv_unified": True, "no_ui": False, "seed": None}))

    assert plan.argv == (
        "/env/bin/python", "/run/server.py", "--model", "/w.gguf", "--alias", "m",
        "--host", "127.0.0.1", "--port", "8000",
        "--ctx-size", "4096", "--kv-unified",
    )  # fmt: skip
    assert plan.files == {"server.py": "# server\n"}
    assert plan.env == {}
    assert plan.endpoints.metrics is None


def test_its_numbers_are_where_the_flag_puts_them() -> None:
    assert LlamaCpp().plan(llamacpp_spec(args={"metrics": True})).endpoints.metrics == "http://127.0.0.1:8000/metrics"


def test_a_llama_server_of_the_users_own_gets_the_same_flags() -> None:
    ours = LlamaCpp().plan(llamacpp_spec()).argv
    theirs = LlamaCpp().plan(llamacpp_spec(program="/usr/bin/llama-server"))

    assert theirs.argv == ("/usr/bin/llama-server", *ours[2:])
    assert theirs.files == {}


def test_a_gpu_takes_every_layer_unless_told_otherwise() -> None:
    gpu = Device("gpu", env={"CUDA_VISIBLE_DEVICES": "0"})

    assert LlamaCpp().plan(llamacpp_spec(device=gpu)).argv[-2:] == ("--n-gpu-layers", "999")
    told = LlamaCpp().plan(llamacpp_spec(device=gpu, args={"n_gpu_layers": 20}))
    assert told.argv[-2:] == ("--n-gpu-layers", "20")


def test_a_key_is_given_in_the_environment_and_never_in_argv() -> None:
    plan = LlamaCpp().plan(llamacpp_spec(api_key="sesame"))

    assert plan.env == {"LLAMA_API_KEY": "sesame"}
    assert "sesame" not in plan.argv


def test_an_embedding_model_is_proved_by_an_embedding() -> None:
    plan = LlamaCpp().plan(llamacpp_spec(model=Model("m", "file:/w.gguf", "gguf", "/w.gguf", task="embed")))

    assert "--embeddings" in plan.argv
    assert (plan.probes.readiness.path, plan.probes.readiness.expect) == ("/v1/embeddings", "data.0.embedding")


def test_a_wildcard_address_is_reached_over_loopback() -> None:
    plan = LlamaCpp().plan(llamacpp_spec(bind="0.0.0.0", api_key="k"))

    assert plan.endpoints.http.url == "http://127.0.0.1:8000"
    assert plan.argv[plan.argv.index("--host") + 1] == "0.0.0.0"
