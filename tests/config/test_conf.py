"""Every file in conf/ composes, resolves and plans, and the command in its first comment works."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from engines.base import Engine, LaunchPlan, PlanError, ServeSpec
from launcher import dataclass_json, plan_json, registry
from launcher.cli import main
from launcher.config.compose import compose, normalized, options
from launcher.deployments.ledger import Ledger
from launcher.gateway.compose_process import composed
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("*.yaml"))
ENGINES = {name: registry.engine(name).capabilities for name in registry.names("engine")}
#: enough for each of the models, whatever this machine has
LARGE = ("device=gpu", "device.assume=NVIDIA H200", "device.count=2")
#: a model that each format can be made from
MODELS = {"gguf": "smollm2", "safetensors": "smollm2-360m", "rbln": "llama3-8b", "fxb": "llama3-8b"}
REMOTE = ("engine.url=http://127.0.0.1:9/v1", "model=remote", "model.id=somebody-elses")
#: what a choice cannot be planned without
NEEDED = {
    "engine=remote": REMOTE,
    "device=remote": ("engine=remote", *REMOTE),
    "runtime=none": ("engine=remote", "device=remote", *REMOTE),
}
PAIRS = [(engine, kind) for engine, can in ENGINES.items() for kind in can.devices]
TASKS = [(engine, kind, task) for engine, kind in PAIRS for task in ENGINES[engine].tasks(kind)]
#: `remote` is a model that has no name of its own
MODEL_OPTIONS = [model for model in options("model") if model != "remote"]
TENSORS = "[{name: x, dtype: float32, shape: [-1, 4]}]"
#: devices that no engine of ours can use yet: asking for one is refused, and says so
UNUSABLE = [kind for kind in registry.names("device") if kind not in {kind for _, kind in PAIRS}]


def resolved(tmp_path: Path, *overrides: str) -> tuple[Engine, ServeSpec]:
    return resolve(settle(overrides, this_machine()).config, Machine(Ledger(tmp_path / "state")))


def check(tmp_path: Path, *overrides: str) -> LaunchPlan:
    """Plan twice with equal results, and through JSON and back."""
    (engine, spec), (again, other) = (resolved(tmp_path, *overrides) for _ in range(2))
    plan = engine.plan(spec)

    # What else runs on this machine may have taken a port between the two.
    assert again.plan(dataclasses.replace(other, ports=spec.ports)) == plan
    assert dataclass_json.load(LaunchPlan, json.loads(json.dumps(plan_json.whole(plan)))) == plan
    assert json.loads(json.dumps(plan_json.public(plan)))["name"] == plan.name
    assert not (tmp_path / "state").exists(), "planning has written something"
    return plan


def model_for(tmp_path: Path, task: str, model_format: str) -> tuple[str, ...]:
    """Overrides that choose a model of this format for this task."""
    if model_format == "url":
        return (*REMOTE, f"model.task={task}")
    if task != "tensor":
        return (f"model={MODELS[model_format]}", f"model.task={task}")
    file = tmp_path / f"weights.{model_format}"
    file.touch()
    tensors = (f"model.inputs={TENSORS}", f"model.outputs={TENSORS}")
    return (f"model.source=file:{file}", f"model.format={model_format}", "model.task=tensor", *tensors)


@pytest.mark.parametrize(("engine", "kind", "task"), TASKS)
def test_every_engine_on_every_device_of_its_for_every_task(tmp_path: Path, engine: str, kind: str, task: str) -> None:
    formats = ENGINES[engine].formats[kind][task]
    for model_format in formats:
        plan = check(tmp_path, f"engine={engine}", f"device={kind}", *model_for(tmp_path, task, model_format))

        assert (plan.engine, plan.device.kind, plan.model.task) == (engine, kind, task)
        assert plan.model.format in formats


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_every_model(tmp_path: Path, model: str) -> None:
    facts = compose([f"model={model}"]).model.facts
    one = facts and facts.num_attention_heads and facts.num_attention_heads % 2

    assert check(tmp_path, *LARGE[: 2 if one else 3], f"model={model}").model.id == model


@pytest.mark.parametrize(
    "model", [model for model in MODEL_OPTIONS if compose([f"model={model}"]).model.task == "generate"]
)
def test_every_model_on_an_npu_is_built_for_it(tmp_path: Path, model: str) -> None:
    plan = check(tmp_path, "engine=triton", "device=rbln", "device.assume=RBLN-CR13", f"model={model}")

    assert plan.builds[-1].output == plan.model.path


@pytest.mark.parametrize("device", options("device"))
def test_every_device(tmp_path: Path, device: str) -> None:
    kind = meaning("device", device)
    if kind in UNUSABLE:
        with pytest.raises(PlanError, match=f"^no engine can use device={kind}; engines: "):
            resolved(tmp_path, f"device={device}")
        return

    words = (f"device={device}", *NEEDED.get(f"device={device}", ()))
    assert check(tmp_path, *words).device.kind == ("cpu" if device == "auto" else kind)


@pytest.mark.parametrize("runtime", options("runtime"))
def test_every_runtime(tmp_path: Path, runtime: str) -> None:
    words = (f"runtime={runtime}", *NEEDED.get(f"runtime={runtime}", ("device=cpu",)))
    assert check(tmp_path, *words).runtime == ("process" if runtime == "auto" else runtime)


@pytest.mark.parametrize("engine", options("engine"))
def test_every_engine_as_auto_leaves_it(tmp_path: Path, engine: str) -> None:
    plan = check(tmp_path, f"engine={engine}", *NEEDED.get(f"engine={engine}", ()))

    assert plan.engine in (ENGINES if engine == "auto" else [meaning("engine", engine)])


def meaning(group: str, option: str) -> str:
    """What an option stands for: itself, or what it is another name of."""
    named = {"engine": "name", "device": "kind", "runtime": "name", "model": "id"}[group]
    word = f"{group}={option}"
    return str(getattr(getattr(compose([word, *NEEDED.get(word, ())]), group), named))


def opening(file: Path) -> str:
    """The comment that `file` opens with."""
    lines = (CONF / file).read_text().splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def commands(file: Path) -> list[str]:
    return re.findall(r"^#\s+rmlaunch (.*)$", opening(file), re.MULTILINE)


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] != "hydra"], ids=str)
def test_a_file_opens_with_what_it_is_and_a_command(file: Path) -> None:
    first = opening(file).splitlines()[0]

    assert re.match(r"# \S.*", first)
    assert "rmlaunch" not in first
    assert commands(file)


@pytest.mark.parametrize(
    ("file", "command"), [(file, command) for file in FILES for command in commands(file)], ids=str
)
def test_the_command_in_the_first_comment_works(file: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(command) if not word.startswith("prompt=")]
    if words[0] == "gateway":
        verb, *rest = [word for word in words[1:] if word != "-d"]
        assert (verb, [route.name for route in composed(normalized(rest), None).routes]) == ("up", ["chat-main"])
        return
    planned = words if words[0] == "plan" else ["plan", *words]
    asked = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if meaning("device", asked.get("device", "auto")) in UNUSABLE:
        with pytest.raises(PlanError, match=r"^no engine can use device="):
            main.run(planned)
        return

    assert main.run([*planned, "--json"]) == 0

    assert "-m" not in words
    shown = json.loads(capsys.readouterr().out)
    named = {"engine": shown["engine"], "device": shown["device"]["kind"], "runtime": shown["runtime"]}
    if "model.id" not in asked:
        named["model"] = shown["model"]["id"]
    meant = {group: meaning(group, asked[group]) for group in named if asked.get(group, "auto") != "auto"}
    assert meant.items() <= named.items()
    group = file.parts[0]
    assert len(file.parts) == 1 or asked[group] == file.stem
