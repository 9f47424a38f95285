"""The wheel outside the checkout: its commands, configs and templates are all in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(find_uv_bin(), "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(folder), str(ROOT))
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.timeout(180)
def test_the_wheel_holds_every_config_and_template(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = _run("git", "-C", str(ROOT), "ls-files", "conf", "templates").split()

    assert {f"launcher/{name}" for name in tracked} <= packed
    assert not [name for name in packed if name.startswith(("conf/", "templates/", "tests/", "benchmarks/"))]


@pytest.mark.timeout(300)
def test_the_wheel_plans_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    _run(find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(venv))
    _run(find_uv_bin(), "pip", "install", "--quiet", "--python", f"{venv}/bin/python", str(wheel))

    printed = _run(
        f"{venv}/bin/rmlaunch", "plan", "engine=triton", "device=cpu", "model=smollm2", "--json", cwd=tmp_path
    )
    where = _run(f"{venv}/bin/python", "-c", "import launcher; print(launcher.__file__)", cwd=tmp_path)

    plan = json.loads(printed)
    assert plan["files"]["models/smollm2/1/model.py"] == (ROOT / "templates/triton/generate.py").read_text()
    assert where.startswith(str(venv))


def _run(*command: str, cwd: Path = ROOT) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # uv does not read pip's setting of where packages lie on disk.
    env.setdefault("UV_FIND_LINKS", ",".join(os.environ.get("PIP_FIND_LINKS", "").split()))
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
