"""Triton's plan, as whole values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.base import PlanError
from engines.triton import Triton
from tests.engines.specs import triton_spec

PYTHON_CONFIG = """\
name: "m"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] optional: true }
input { name: "messages" data_type: TYPE_STRING dims: [ 1 ] optional: true }
input { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
input { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }
input { name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
input { name: "return_finish_reason" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
input { name: "return_num_input_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
input { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
output { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [ 1 ] }
output { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ 1 ] }
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "model_path" value { string_value: "/weights" } }
parameters { key: "device" value { string_value: "cpu" } }
parameters { key: "dtype" value { string_value: "bfloat16" } }
parameters { key: "max_context" value { string_value: "2048" } }
parameters { key: "workers" value { string_value: "2" } }
"""

WHEEL = "/env/lib/python3.11/site-packages/pytriton/tritonserver"


def test_the_repository_on_cpu_is_complete_and_the_backend_is_linked() -> None:
    plan = Triton().plan(triton_spec("cpu"))

    assert plan.files == {
        "models/m/config.pbtxt": PYTHON_CONFIG,
        "models/m/1/model.py": "# generate\n",
        "models/m/1/decoding.py": "# decoding\n",
    }
    assert plan.links == {
        "backends/python/libtriton_python.so": f"{WHEEL}/backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py": f"{WHEEL}/backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub": (f"{WHEEL}/python_backend_stubs/3.11/triton_python_backend_stub"),
    }


def test_the_command_line_listens_on_the_given_address_alone() -> None:
    plan = Triton().plan(triton_spec("cpu"))

    assert plan.argv == (
        f"{WHEEL}/bin/tritonserver", "--backend-directory", "/run/backends",
        "--model-repository", "/run/models", "--disable-auto-complete-config", "--exit-on-error", "true",
        "--strict-readiness", "true", "--exit-timeout-secs", "6",
        "--http-address", "127.0.0.1", "--http-port", "8000",
        "--grpc-address", "127.0.0.1", "--grpc-port", "8001",
        "--metrics-address", "127.0.0.1", "--metrics-port", "8002",
        "--backend-config", "python,shm-region-prefix-name=rmlaunch-b3d46fe883f3-",
    )  # fmt: skip
    assert plan.env["PATH"].startswith("/env/bin:")
    assert plan.env["LD_LIBRARY_PATH"] == "/lib/python"
    assert plan.env["VISIBLE"] == "yes"


def test_a_gpu_is_one_instance_on_cuda() -> None:
    config = Triton().plan(triton_spec("gpu")).files["models/m/config.pbtxt"]

    assert "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]" in config
    assert 'parameters { key: "device" value { string_value: "cuda" } }' in config


def test_vllm_on_gpus_gets_complete_engine_arguments() -> None:
    plan = Triton().plan(triton_spec("gpu", ids=(2, 3), backend="vllm", max_num_seqs=8))

    assert json.loads(plan.files["models/m/1/model.json"]) == {
        "model": "/weights",
        "max_model_len": 2048,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_num_seqs": 8,
    }
    assert plan.argv[0] == "tritonserver"


def test_a_compiled_folder_for_rbln_gets_what_vllm_rbln_0_12_accepts_and_no_more() -> None:
    plan = Triton().plan(triton_spec("rbln", ids=(0, 1, 2, 3), batch_size=4))

    assert json.loads(plan.files["models/m/1/model.json"]) == {"model": "/weights", "max_num_seqs": 4}
    config = plan.files["models/m/config.pbtxt"]
    assert 'backend: "vllm"' in config
    assert "KIND_MODEL" in config
    assert "messages" not in config


def test_a_handler_of_the_users_own_takes_the_place_of_ours() -> None:
    import dataclasses

    spec = triton_spec("cpu", handler="/mine.py")
    spec = dataclasses.replace(spec, templates={**spec.templates, "handler": "# mine\n"})

    assert Triton().plan(spec).files["models/m/1/model.py"] == "# mine\n"


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("cpu", {"backend": "vllm"}, "engine.backend=vllm cannot use device=cpu; use engine.backend=python"),
        ("rbln", {"backend": "python"}, "engine.backend=python cannot use device=rbln; use engine.backend=vllm"),
        ("cpu", {"backend": "onnx"}, "engine.backend='onnx' is not known; use auto, python or vllm"),
        ("cpu", {"protocol": "smoke"}, "engine.protocol='smoke' is not known; use grpc or http"),
        ("gpu", {"backend": "vllm", "handler": "x"}, "engine.handler"),
        ("cpu", {"max_num_seqs": 4}, "engine.max_num_seqs"),
        ("rbln", {"max_num_seqs": 4}, "model.build.rbln.batch_size"),
        ("gpu", {"ids": (0, 1)}, r"engine.backend=python uses one GPU, but device.ids=\[0, 1\]"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Triton().plan(triton_spec(kind, **options))
