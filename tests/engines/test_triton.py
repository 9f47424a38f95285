"""Triton's plan, as whole values; with the real server, what `setup_model_repository` makes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from engines.base import Device, Environment, HttpCheck, Model, PlanError, ServeSpec, TensorSpec
from engines.triton import Options, Triton
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine
from launcher.planning.resolve import resolve
from launcher.prepare.steps import render_files
from launcher.serving.config import ServingConfig, create_serving_engine
from tests.supervision import wait_for
from tests.tensor_models import onnx_model

TEMPLATES = ("generate", "embed", "tensor", "triton_model", "bad_request", "hugging_face", "decoding", "language_model",
             "embedding", "tensor_model", "tensors")  # fmt: skip
WHEEL = "/env/lib/python3.11/site-packages/pytriton/tritonserver"

A, B = TensorSpec("A", "float32", (-1, 3)), TensorSpec("B", "bool", (2,))
SUM = TensorSpec("SUM", "float64", (-1, 3))


def spec(
    kind: str = "cpu", model: Model | None = None, *, ids: tuple[int, ...] = (0,), args: Any = None, **options: Any
) -> ServeSpec:
    formats = {"cpu": "safetensors", "gpu": "safetensors", "rbln": "rbln"}
    return ServeSpec(
        name="t",
        engine="triton",
        device=Device(kind, ids, env={"VISIBLE": "yes"}),
        model=model or Model("m", "file:/w", formats[kind], "/weights"),
        runtime="process",
        environment=Environment("e", "/env", "3.11", library_dir="/lib/python"),
        bind="127.0.0.1",
        ports=(8000, 8001, 8002),
        run_dir="/run",
        options=dataclasses.asdict(Options(**{"backend": "auto", "protocol": "grpc", **options})),
        args=args or {},
        templates={f"{name}.py": f"# {name}\n" for name in TEMPLATES},
    )


def tensor_model(
    model_format: str = "onnx", inputs: tuple[TensorSpec, ...] = (A, B), output: TensorSpec = SUM
) -> Model:
    return Model("m", "file:/w", model_format, "/net", task="tensor", inputs=inputs, outputs=(output,))


def rendered(*modules: str) -> dict[str, str]:
    """The first is model.py, the others lie beside it under their own names."""
    first, *others = modules
    return {"models/m/1/model.py": f"# {first}\n", **{f"models/m/1/{name}.py": f"# {name}\n" for name in others}}


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

EMBED_CONFIG = """\
name: "m"
backend: "python"
max_batch_size: 0
input { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "embedding" data_type: TYPE_FP32 dims: [ -1, -1 ] }
output { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [ -1 ] }
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "model_path" value { string_value: "/weights" } }
parameters { key: "device" value { string_value: "cpu" } }
parameters { key: "dtype" value { string_value: "float32" } }
parameters { key: "max_context" value { string_value: "256" } }
parameters { key: "workers" value { string_value: "1" } }
"""

TENSOR_CONFIG = """\
name: "m"
backend: "python"
max_batch_size: 0
input { name: "A" data_type: TYPE_FP32 dims: [ -1, 3 ] }
input { name: "B" data_type: TYPE_BOOL dims: [ 2 ] }
output { name: "SUM" data_type: TYPE_FP64 dims: [ -1, 3 ] }
instance_group [ { count: 3 kind: KIND_CPU } ]
parameters { key: "model_path" value { string_value: "/net" } }
parameters { key: "device" value { string_value: "cpu" } }
parameters { key: "model_format" value { string_value: "onnx" } }
parameters { key: "workers" value { string_value: "3" } }
"""


def test_the_repository_on_cpu_is_complete_and_the_backend_is_linked() -> None:
    plan = Triton().plan(spec("cpu"))

    assert plan.files == {
        "models/m/config.pbtxt": PYTHON_CONFIG,
        **rendered("generate", "triton_model", "bad_request", "hugging_face", "decoding", "language_model"),
    }
    assert plan.links == {
        "backends/python/libtriton_python.so": f"{WHEEL}/backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py": f"{WHEEL}/backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub": (f"{WHEEL}/python_backend_stubs/3.11/triton_python_backend_stub"),
    }


def test_the_command_line_listens_on_the_given_address_alone() -> None:
    plan = Triton().plan(spec("cpu"))

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


def test_embeddings_have_a_row_for_every_text() -> None:
    model = Model("m", "file:/w", "safetensors", "/weights", task="embed", dtype="float32", context_length=256)
    plan = Triton().plan(spec(model=model))

    assert plan.files == {
        "models/m/config.pbtxt": EMBED_CONFIG,
        **rendered("embed", "triton_model", "bad_request", "hugging_face", "embedding"),
    }
    text = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    assert plan.probes.readiness == HttpCheck("/v2/models/m/infer", "POST", {"inputs": [text]}, expect="outputs.0.data")


def test_tensors_are_those_of_the_signature_and_each_worker_has_its_own_model() -> None:
    plan = Triton().plan(spec(model=tensor_model(), workers=3))

    assert plan.files == {
        "models/m/config.pbtxt": TENSOR_CONFIG,
        **rendered("tensor", "triton_model", "bad_request", "hugging_face", "tensor_model", "tensors"),
    }


def test_tensors_are_ready_when_zeros_of_every_input_are_answered() -> None:
    plan = Triton().plan(spec(model=tensor_model()))

    zeros = [
        {"name": "A", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]},
        {"name": "B", "shape": [2], "datatype": "BOOL", "data": [False, False]},
    ]
    assert plan.probes.readiness == HttpCheck("/v2/models/m/infer", "POST", {"inputs": zeros}, expect="outputs")


@pytest.mark.parametrize(
    "model",
    [
        tensor_model(inputs=(TensorSpec("image", "uint8", (-1, 3, 224, 224)),)),
        tensor_model(inputs=(TensorSpec("h", "float16", (4,)),)),
        tensor_model(output=TensorSpec("h", "float16", (4,))),
    ],
    ids=["large", "float16 in", "float16 out"],
)
def test_what_no_request_in_json_can_ask_is_ready_when_the_model_has_computed_zeros_itself(model: Model) -> None:
    assert Triton().plan(spec(model=model)).probes.readiness == HttpCheck("/v2/models/m/ready")


def test_an_rbln_file_runs_in_the_python_backend_of_nvidias_container() -> None:
    plan = Triton().plan(spec("rbln", tensor_model("rbln"), ids=(0, 1)))

    config = plan.files["models/m/config.pbtxt"]
    assert "instance_group [ { count: 1 kind: KIND_MODEL } ]" in config
    assert 'parameters { key: "device" value { string_value: "rbln:2" } }' in config
    assert 'parameters { key: "model_format" value { string_value: "rbln" } }' in config
    assert plan.argv[:3] == ("tritonserver", "--model-repository", "/run/models")
    assert plan.links == {}


def test_a_gpu_is_one_instance_on_cuda() -> None:
    config = Triton().plan(spec("gpu")).files["models/m/config.pbtxt"]

    assert "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]" in config
    assert 'parameters { key: "device" value { string_value: "cuda" } }' in config


def test_vllm_on_gpus_gets_complete_engine_arguments() -> None:
    plan = Triton().plan(spec("gpu", ids=(2, 3), backend="vllm", max_num_seqs=8))

    assert json.loads(plan.files["models/m/1/model.json"]) == {
        "model": "/weights",
        "max_model_len": 2048,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_num_seqs": 8,
    }
    assert plan.argv[0] == "tritonserver"


def test_a_compiled_folder_for_rbln_gets_what_vllm_rbln_0_12_accepts_and_no_more() -> None:
    plan = Triton().plan(spec("rbln", Model("m", "file:/w", "rbln", "/weights", batch_size=4), ids=(0, 1, 2, 3)))

    assert json.loads(plan.files["models/m/1/model.json"]) == {"model": "/weights", "max_num_seqs": 4}
    assert plan.env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    config = plan.files["models/m/config.pbtxt"]
    assert 'backend: "vllm"' in config
    assert "KIND_MODEL" in config
    assert "messages" not in config


def test_a_handler_of_the_users_own_takes_the_place_of_ours() -> None:
    ours = spec(handler="/mine.py")
    theirs = dataclasses.replace(ours, templates={**ours.templates, "handler": "# mine\n"})

    assert Triton().plan(theirs).files["models/m/1/model.py"] == "# mine\n"


EMBED = Model("m", "file:/w", "safetensors", "/weights", task="embed")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("cpu", {"backend": "vllm"}, "backend=vllm cannot serve model.task=generate on device=cpu; use engine.backend"),
        ("rbln", {"backend": "python"}, "backend=python cannot serve model.task=generate on device=rbln; use .*=vllm"),
        ("gpu", {"backend": "vllm", "model": EMBED}, "engine.backend=vllm cannot serve model.task=embed"),
        ("rbln", {"backend": "vllm", "model": tensor_model("rbln")}, "backend=vllm cannot serve model.task=tensor"),
        ("cpu", {"backend": "onnx"}, "engine.backend='onnx' is not known; use auto, python or vllm"),
        ("cpu", {"protocol": "smoke"}, "engine.protocol='smoke' is not known; use grpc or http"),
        ("cpu", {"workers": 0}, "engine.workers=0; it must be at least 1"),
        ("gpu", {"backend": "vllm", "workers": 2}, "engine.workers=2 is for engine.backend=python"),
        ("gpu", {"backend": "vllm", "handler": "x"}, "engine.handler"),
        ("cpu", {"max_num_seqs": 4}, "engine.max_num_seqs"),
        ("cpu", {"max_num_seqs": 4, "model": tensor_model()}, "engine.max_num_seqs"),
        ("rbln", {"max_num_seqs": 4}, "engine.max_num_seqs=4: .* compile with model.build.rbln.batch_size"),
        ("gpu", {"ids": (0, 1)}, r"uses one GPU, but device.ids=\[0, 1\]; give one, or use engine.backend=vllm"),
        ("gpu", {"ids": (0, 1), "model": EMBED}, r"uses one GPU, but device.ids=\[0, 1\]; give one$"),
        ("cpu", {"model": tensor_model(output=TensorSpec("loss", "float32", ()))}, "output 'loss' has no dimension"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_the_key_to_change(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Triton().plan(spec(kind, **options))


@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_repository_is_made_for_a_triton_of_ones_own(tmp_path: Path) -> None:
    model = f"file:{onnx_model(tmp_path)}"
    engine = create_serving_engine(
        ServingConfig(engine="triton", device="cpu", model=model, overrides=("model.task=tensor", "model.id=net"))
    )

    repository = engine.setup_model_repository(tmp_path / "models")

    assert not engine.is_running
    assert {"config.pbtxt", "1"} == {entry.name for entry in (repository / "net").iterdir()}
    plan = Triton().plan(resolve(engine.config, Machine(Ledger(tmp_path / "state")))[1])
    render_files({}, plan.links, tmp_path)  # pytriton's wheel has the stub of each Python beside its backends
    words = [word.replace(plan.run_dir, str(tmp_path)) for word in plan.argv]
    http = plan.endpoints.http
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(words, env={**os.environ, **plan.env}, stdout=log, stderr=log, cwd=tmp_path)
        try:
            wait_for(lambda: _is_ready(f"{http.url}/v2/models/net/ready"), timeout_s=60)
        finally:
            server.terminate()
            server.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.ConnectionError:
        return False
