"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.cli.main import run
from tests.dockerd import BASE
from tests.supervision import free_port
from tests.tensor_models import onnx_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line.partition("  #")[0].strip()
    for block in blocks("sh")
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith(("rmlaunch ", "curl "))
]
IMAGES = [command for command in COMMANDS if command.startswith("rmlaunch image ")]
COMMANDS = [command for command in COMMANDS if command not in IMAGES]
PLANS = [command for command in COMMANDS if command.startswith("rmlaunch plan ")]
#: the verbs of what is deployed, which go one after the other
SEQUENCE = [
    command
    for command in COMMANDS
    if command.startswith("curl ") or (command not in PLANS and command.split()[1].isalpha())
]
IN_DOCKER = [command for command in COMMANDS if command not in PLANS and "runtime=docker" in command]
DEFAULT_PORT = yaml.safe_load((ROOT / "conf/gateway/default.yaml").read_text())["port"]
LAUNCHES = [command for command in COMMANDS if command not in (*PLANS, *SEQUENCE, *IN_DOCKER)]


def test_the_gateway_is_asked_where_it_is_by_default() -> None:
    assert set(re.findall(r"localhost:(\d+)", README)) == {str(DEFAULT_PORT)}


def test_the_first_screen_shows_one_command_and_its_output() -> None:
    first = "\n".join(README.splitlines()[:25])

    assert "$ make run" in first
    assert "The capital of France is Paris." in first


@pytest.mark.parametrize("command", PLANS)
def test_a_plan_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", LAUNCHES)
def test_a_launch_answers(command: str, tmp_path: Path) -> None:
    assert "The capital of France is Paris." in stdout_of(command, tmp_path)


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("docker_host")
@pytest.mark.parametrize("command", [*IMAGES, *IN_DOCKER])
def test_a_command_with_docker_does_what_it_says(command: str, tmp_path: Path) -> None:
    """But for the base, which no registry gives us."""
    expected = "rmlaunch/llamacpp-cpu:" if command in IMAGES else "The capital of France is Paris."

    assert expected in stdout_of(f"{command} runtime.base={BASE}", tmp_path)


def stdout_of(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", "launcher", *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.real
@pytest.mark.timeout(900)
def test_deployments_are_managed_in_the_order_of_the_readme(tmp_path: Path) -> None:
    """But for the gateway's port, which another gateway of this machine may have."""
    rmlaunch, said, port = [sys.executable, "-m", "launcher"], {}, free_port()
    try:
        for command in SEQUENCE:
            program, *words = shlex.split(command.replace(f"localhost:{DEFAULT_PORT}", f"localhost:{port}"))
            if words[:2] == ["gateway", "up"]:
                words.append(f"gateway.port={port}")
            whole = [*(rmlaunch if program == "rmlaunch" else [program, "--fail-with-body"]), *words]
            done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, (command, done.stderr)
            said[command] = done.stdout
    finally:
        subprocess.run([*rmlaunch, "stop", "--all"], check=True, timeout=60)

    whole_text = "".join(said.values())
    assert re.search(r"^a http://127\.0\.0\.1:\d+$", whole_text, re.MULTILINE)
    chat, stream = [answer for command, answer in said.items() if command.startswith("curl ")]
    assert json.loads(chat)["model"] == "chat-main"
    assert "Paris" in chat
    assert stream.endswith("data: [DONE]\n\n")
    assert "Paris" in stream


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("example", "words"),
    list(
        zip(
            blocks("python"),
            [
                ("Paris", "The capital of France is Paris"),
                ("(2, 384)", "'SUM': array([[2., 2., 2.]]", "array([2, 2, 2])"),
            ],
            strict=True,
        )
    ),
    ids=["text", "embeddings and tensors"],
)
def test_a_python_example_runs(example: str, words: tuple[str, ...], tmp_path: Path) -> None:
    onnx_model(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False
    )

    assert done.returncode == 0, done.stderr
    for said in words:
        assert said in done.stdout


def test_the_example_of_a_users_model_composes(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(example)

    assert run(["plan", "--config-dir", str(tmp_path), "model=mine", "engine=triton", "device=cpu"]) == 0


def test_every_file_that_it_links_is_there() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)#]+)\)", README)

    assert links
    assert [link for link in links if not link.startswith("http") and not (root / link).exists()] == []
