"""The wheel outside the checkout: its commands, configs, templates and types are all in it."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

from launcher import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(find_uv_bin(), "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(folder), str(ROOT))
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    _run(find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(folder))
    _run(find_uv_bin(), "pip", "install", "--quiet", "--python", f"{folder}/bin/python", str(wheel))
    return folder


@pytest.mark.timeout(180)
def test_the_wheel_holds_every_config_and_template(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = _run("git", "-C", str(ROOT), "ls-files", "conf", "templates").split()

    assert {f"launcher/{name}" for name in tracked} <= packed
    assert not [name for name in packed if name.startswith(("conf/", "templates/", "tests/", "benchmarks/"))]


@pytest.mark.timeout(180)
def test_the_wheel_says_whose_it_is_and_how_it_may_be_used(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(packed.read(name))
        license_text = packed.read(name.replace("METADATA", "licenses/LICENSE")).decode()

    keys = ("Name", "Version", "License-Expression", "License-File", "Author", "Project-URL")
    assert {key: about.get_all(key) for key in keys} == {
        "Name": ["rmlaunch"],
        "Version": [__version__],
        "License-Expression": ["MIT"],
        "License-File": ["LICENSE"],
        "Author": ["rmlaunch contributors"],
        "Project-URL": None,
    }
    assert license_text == (ROOT / "LICENSE").read_text()
    assert license_text.startswith("MIT License\n\nCopyright (c) 2026 rmlaunch contributors\n")


def test_the_changelog_tells_what_is_in_this_version() -> None:
    released = re.findall(r"^## \[(\d.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert released[0][0] == __version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in released)


@pytest.mark.timeout(300)
def test_the_version_is_had_in_every_way_and_costs_nothing(venv: Path, tmp_path: Path) -> None:
    python = f"{venv}/bin/python"
    code = "import launcher, sys; print(launcher.__version__, 'importlib.metadata' in sys.modules)"
    imported = _run(python, "-c", code, cwd=tmp_path)
    installed = _run(python, "-c", "from importlib.metadata import version; print(version('rmlaunch'))", cwd=tmp_path)

    assert (imported, installed) == (f"{__version__} False\n", f"{__version__}\n")
    assert json.loads(_run(f"{venv}/bin/rmlaunch", "info", "--json", cwd=tmp_path))["rmlaunch"] == __version__


@pytest.mark.timeout(300)
def test_the_wheel_plans_outside_the_checkout(venv: Path, tmp_path: Path) -> None:
    printed = _run(
        f"{venv}/bin/rmlaunch", "plan", "engine=triton", "device=cpu", "model=smollm2", "--json", cwd=tmp_path
    )
    where = _run(f"{venv}/bin/python", "-c", "import launcher; print(launcher.__file__)", cwd=tmp_path)

    plan = json.loads(printed)
    assert plan["files"]["models/smollm2/1/model.py"] == (ROOT / "templates/triton/generate.py").read_text()
    assert where.startswith(str(venv))


# ------------------------------------------------------------------------------------------- the types of a user's code

_RIGHT = """\
import numpy
from launcher import InferenceError, ServingConfig, ServingEngine, create_serving_engine, launch

with launch("engine=remote", "engine.url=http://127.0.0.1:8000/v1", "model=remote", "model.id=m") as engine:
    text: str = engine.infer("x", max_tokens=8)
    texts: list[str] = engine.infer(["x", "y"])
    sums = engine.infer({"A": numpy.ones((1, 3), "float32")})["SUM"].sum()
    for piece in engine.stream([{"role": "user", "content": "x"}]):
        print(piece.upper())

def made(model: str) -> ServingEngine:
    return create_serving_engine(ServingConfig(engine="triton", device="cpu", model=model, port=9000))
"""
#: a wrong line → what is said of it
_WRONG = {
    "launch(1)": r'error: Argument 1 to "launch" has incompatible type "int"; expected "str"  \[arg-type\]',
    'number: int = launch("x").infer("x")': r'error: .*"str".*"int"',
    "ServingConfig(port='9000')": r'error: Argument "port" to "ServingConfig" has incompatible type "str"',
    "launch().asked('x')": r'error: "ServingEngine" has no attribute "asked"',
    "launcher.lunch": r'error: Module has no attribute "lunch"',
    "reveal_type(launch('x'))": r'note: Revealed type is "launcher\..*ServingEngine"',
    "reveal_type(launcher.InferenceError('x'))": r'note: Revealed type is "engines\..*InferenceError"',
}


@pytest.mark.timeout(300)
def test_a_users_type_checker_sees_our_types(venv: Path, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(_RIGHT)
    assert _checked(venv, tmp_path, "right.py") == ["Success: no issues found in 1 source file"]

    lines = ["import launcher", "from launcher import ServingConfig, launch", *_WRONG]
    (tmp_path / "wrong.py").write_text("".join(f"{line}\n" for line in lines))
    *said, summary = _checked(venv, tmp_path, "wrong.py")
    assert summary.startswith("Found 5 errors in 1 file")
    for number, pattern in enumerate(_WRONG.values(), 3):
        assert [line for line in said if re.match(rf"wrong\.py:{number}: {pattern}", line)], "\n".join(said)


def _checked(venv: Path, folder: Path, file: str) -> list[str]:
    """The lines of mypy --strict, which looks for packages in `venv` and knows nothing of this checkout."""
    words = (
        "--strict",
        "--config-file=",
        "--cache-dir",
        str(folder / "cache"),
        "--python-executable",
        f"{venv}/bin/python",
    )
    done = subprocess.run(
        (sys.executable, "-m", "mypy", *words, file),
        cwd=folder,
        env=_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.splitlines()


def _env() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "MYPYPATH")}
    # uv does not read pip's setting of where packages lie on disk.
    env.setdefault("UV_FIND_LINKS", ",".join(os.environ.get("PIP_FIND_LINKS", "").split()))
    return env


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, env=_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
