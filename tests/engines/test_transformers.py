"""Transformers' plan as whole values, and what its real server makes of bad requests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from engines.base import (
    Device,
    Endpoint,
    Endpoints,
    HttpCheck,
    InferenceError,
    Model,
    PlanError,
    Probes,
    ProbeSettings,
    ServeSpec,
)
from engines.transformers import FLAGS, OURS, VERSION, Transformers
from launcher import launch
from launcher.serving.engine import ServingEngine
from tests.engines.specs import ENVIRONMENT

SMALL = ("engine=transformers", "device=cpu", "model=smollm2")
COUNT = "One, two, three,"


def spec(*, continuous_batching: bool = False, **changes: Any) -> ServeSpec:
    values: dict[str, Any] = {
        "name": "t",
        "engine": "transformers",
        "device": Device("cpu"),
        "model": Model("m", "file:/a@b", "safetensors", "/a@b", context_length=2048),
        "runtime": "process",
        "environment": ENVIRONMENT,
        "bind": "127.0.0.1",
        "ports": (8000,),
        "run_dir": "/run",
        "options": {"continuous_batching": continuous_batching},
        "templates": {"serve.py": "# serve\n", "decoding.py": "# decoding\n", "bad_request.py": "# bad\n"},
    }
    return ServeSpec(**{**values, **changes})


# ----------------------------------------------------------------------------------------------------------- plans


def test_the_plan_is_the_servers_command_line_with_the_model_behind_a_link() -> None:
    plan = Transformers().plan(spec())

    assert plan.argv == (
        "/env/bin/python", "/run/server/serve.py", "--served-model-name", "m", "--max-context", "2048",
        "--drain-s", "8", "weights", "--host", "127.0.0.1", "--port", "8000", "--device", "cpu",
        "--dtype", "bfloat16",
    )  # fmt: skip
    assert plan.links == {"weights": "/a@b"}
    assert plan.files == {
        "server/serve.py": "# serve\n",
        "server/decoding.py": "# decoding\n",
        "server/bad_request.py": "# bad\n",
    }
    assert plan.env == {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    assert plan.endpoints == Endpoints(Endpoint("127.0.0.1", 8000))
    body = {"model": "m", "prompt": "a", "max_tokens": 1}
    assert plan.probes == Probes(
        startup=HttpCheck("/health"),
        readiness=HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens"),
        liveness=HttpCheck("/v1/completions", "POST", body, expect="usage.completion_tokens"),
        settings=ProbeSettings(),
    )


def test_one_gpu_is_named_and_several_are_shared_out() -> None:
    one = Transformers().plan(spec(device=Device("gpu", (3,), env={"CUDA_VISIBLE_DEVICES": "3"})))
    two = Transformers().plan(spec(device=Device("gpu", (0, 1))))

    assert one.argv[one.argv.index("--device") + 1] == "cuda:0"
    assert one.env["CUDA_VISIBLE_DEVICES"] == "3"
    assert "OMP_WAIT_POLICY" not in one.env
    assert two.argv[two.argv.index("--device") + 1] == "auto"


def test_flags_are_passed_through_by_the_servers_names() -> None:
    args = {"attn_implementation": "sdpa", "compile": True, "enable_cors": False, "default_seed": None,
            "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip

    assert Transformers().plan(spec(args=args)).argv[17:] == (
        "--attn-implementation", "sdpa", "--compile", "--no-enable-cors",
        "--chat-template-kwargs", '{"enable_thinking": false}',
    )  # fmt: skip


def test_continuous_batching_on_a_processor_takes_memory_for_eight_contexts() -> None:
    plan = Transformers().plan(spec(continuous_batching=True))
    own = Transformers().plan(spec(continuous_batching=True, args={"cb_max_memory_percent": 0.2}))
    gpu = Transformers().plan(spec(continuous_batching=True, device=Device("gpu")))

    assert plan.argv[17:] == ("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "2048")
    assert own.argv[17:] == ("--continuous-batching", "--cb-max-memory-percent", "0.2")
    assert gpu.argv[17:] == ("--continuous-batching",)


def test_a_key_is_given_in_the_environment_and_never_in_argv() -> None:
    plan = Transformers().plan(spec(api_key="sesame", bind="0.0.0.0"))

    assert plan.env["TRANSFORMERS_SERVE_API_KEY"] == "sesame"
    assert "sesame" not in plan.argv
    assert plan.endpoints.http.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"args": {"device": "cpu"}}, "engine.args.device: this flag is set by device="),
        ({"args": {"continuous_batching": True}}, r"is set by engine\.continuous_batching"),
        ({"args": {"cb_numblocks": 1}}, "has no such flag; did you mean 'cb_num_blocks'"),
        ({"args": {"zzz": 1}}, "has no such flag; it has: attn_implementation, "),
        ({"args": {"cb_num_blocks": 1}}, r"engine\.args\.cb_num_blocks needs engine\.continuous_batching=true"),
        ({"program": "/usr/bin/transformers"}, "set engine.environment to the one that has transformers"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_to_change(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Transformers().plan(spec(**changes))


# ---------------------------------------------------------------------------------------------------- the real server


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        with launch(*SMALL, "api_key=sesame") as serving:
            yield serving


def post(engine: ServingEngine, body: Any, path: str = "/v1/completions", key: str = "sesame") -> tuple[int, str]:
    """Straight to the server, past our client; a body of bytes goes as it is. Returns status and message."""
    answer = requests.post(
        f"{engine.plan.endpoints.http.url}{path}",
        data=body if isinstance(body, bytes) else json.dumps(body),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        timeout=60,
    )
    return answer.status_code, answer.json()["error"]["message"]


def asking(**body: Any) -> dict[str, Any]:
    return {"model": "smollm2", "prompt": COUNT, "max_tokens": 4, "temperature": 0, **body}


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (asking(prompt=""), 400, "the prompt has no tokens"),
        (asking(prompt="", stream=True), 400, "the prompt has no tokens"),
        (asking(prompt="word " * 200_000), 400, "has 200001 tokens, but the context is 2048 tokens"),
        (asking(max_tokens=0), 400, "max_tokens must be at least 1, not 0"),
        (asking(max_tokens="4"), 400, "max_tokens must be a number without a fraction, not '4'"),
        (asking(temperature=-1), 400, "temperature must not be negative"),
        (asking(stop=[""]), 400, "stop must be a text or a list of texts"),
        (asking(model="other"), 404, "the model 'other' does not exist; this server has 'smollm2'"),
        (asking(prompt="\ud800"), 400, "the request holds half a character"),
        (b'{"model": "smollm2", "prompt": "\xff"}', 400, "error parsing the body"),
        (b"{{{", 400, "JSON decode error"),
    ],
    ids=["empty", "empty stream", "1 MB", "no tokens", "text", "cold", "stop", "model", "half", "UTF-8", "JSON"],
)
def test_a_bad_request_gets_one_clear_error_and_the_server_lives_on(
    engine: ServingEngine, body: Any, status: int, words: str
) -> None:
    code, message = post(engine, body)

    assert code == status
    assert words in message
    assert engine.infer(COUNT, max_tokens=2) == " four,"


@pytest.mark.real
@pytest.mark.timeout(900)
def test_messages_that_the_template_does_not_know_are_refused(engine: ServingEngine) -> None:
    code, message = post(engine, {"model": "smollm2", "messages": []}, "/v1/chat/completions")

    assert (code, "empty conversation" in message) == (400, True)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_without_the_key_only_health_is_told(engine: ServingEngine) -> None:
    url = engine.plan.endpoints.http.url

    assert post(engine, asking(), key="wrong")[0] == 401
    assert requests.get(f"{url}/v1/models", timeout=10).status_code == 401
    assert requests.get(f"{url}/health", timeout=10).status_code == 200


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_model_cannot_be_dropped_or_another_one_loaded(engine: ServingEngine) -> None:
    for path in ("/reset", "/load_model"):
        assert post(engine, {"model": "other"}, path)[0] == 404

    models = requests.get(
        f"{engine.plan.endpoints.http.url}/v1/models", headers={"Authorization": "Bearer sesame"}, timeout=10
    )
    assert models.json() == {
        "object": "list",
        "data": [{"id": "smollm2", "object": "model", "owned_by": "transformers"}],
    }


@pytest.mark.real
@pytest.mark.timeout(900)
def test_seeds_hold_though_requests_with_others_are_decoded(engine: ServingEngine) -> None:
    def sample(seed: int) -> str:
        return engine.infer("Once upon a time", max_tokens=8, temperature=1.5, top_k=50, seed=seed)

    alone = [sample(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(sample, range(4)))

    assert together == alone
    assert len(set(alone)) > 1


@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_stop_string_is_not_in_the_answer_however_it_is_cut_into_tokens(engine: ServingEngine) -> None:
    for stop, text in ((" five", " four,"), ("ur, f", " fo")):
        assert engine.infer(COUNT, max_tokens=12, stop=stop) == text
        assert "".join(engine.stream(COUNT, max_tokens=12, stop=stop)) == text


@pytest.mark.real
@pytest.mark.timeout(900)
def test_an_answer_ends_with_the_context() -> None:
    with launch(*SMALL, "model.context_length=16") as serving:
        prompt = COUNT + " four, five,"
        assert serving.infer(prompt, max_tokens=100) == serving.infer(prompt, max_tokens=6)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_continuous_batching_decodes_together_and_lives_through_an_empty_prompt() -> None:
    with launch(*SMALL, "engine.continuous_batching=true") as serving:
        prompts = [COUNT, "The capital of France is"]
        alone = [serving.infer(prompt, max_tokens=6) for prompt in prompts]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda prompt: serving.infer(prompt, max_tokens=6), prompts)) == alone
        assert post(serving, asking(prompt=""))[0] == 400
        with pytest.raises(InferenceError, match="continuous batching decodes greedily"):
            serving.infer(COUNT, temperature=0.7)
        for ask in (serving.infer, lambda *a, **k: "".join(serving.stream(*a, **k))):
            assert ask(COUNT, max_tokens=12, stop=" five") == " four,"
        assert serving.infer(COUNT, max_tokens=6) == alone[0]


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_flags_are_the_servers_own(engine: ServingEngine) -> None:
    show = (
        "import inspect, importlib.metadata; from transformers.cli.serve import Serve; "
        "print(importlib.metadata.version('transformers'), *inspect.signature(Serve.__init__).parameters)"
    )
    python = Path(engine.plan.argv[0])
    done = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True, timeout=300)
    version, *flags = done.stdout.split()

    assert version == VERSION
    assert set(flags) - {"self", "force_model", "non_blocking"} == FLAGS | set(OURS)
