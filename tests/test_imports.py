"""Imports go one way, and what a call does not need is not loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {f"engines.{file.stem}": file for file in sorted((ROOT / "engines").glob("*.py")) if file.stem != "__init__"}
CONTRACT = ["base", "container", "dialect", "endpoint", "environment", "errors", "files", "plan", "protocol"]
ENGINES = {point.value.partition(":")[0] for point in entry_points(group="rmlaunch.engines")}


def owner(module: str) -> str | None:
    """The engine that `module` belongs to: its own module, or one named after it; None is shared by all."""
    return next((engine for engine in ENGINES if module == engine or module.startswith(f"{engine}_")), None)


def imported(file: Path) -> Iterator[str]:
    """Every module that `file` imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def loaded_by(code: str) -> set[str]:
    """The top-level packages that are loaded in a new interpreter after `code`."""
    report = "import sys; sys.stderr.write('\\n'.join({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_the_engine_modules_are_all_there() -> None:
    assert set(MODULES) >= ENGINES
    assert {"engines.triton_client", "engines.llamacpp"} <= {module for module in MODULES if owner(module)}
    assert owner("engines.base") is None


@pytest.mark.parametrize("module", MODULES)
def test_engines_never_import_the_launcher(module: str) -> None:
    assert [name for name in imported(MODULES[module]) if name.split(".")[0] == "launcher"] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_engine_imports_a_module_of_another(module: str) -> None:
    others = [name for name in imported(MODULES[module]) if owner(name) not in (None, owner(module))]

    assert others == []


@pytest.mark.parametrize("code", ["", "assert launcher.cli.main.run(['--help']) == 0"])
def test_help_loads_nothing_heavy(code: str) -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "psutil", "rich", "torch"}

    assert heavy & loaded_by(f"import launcher.cli.main\n{code}") == set()


def test_the_supervisor_loads_neither_hydra_nor_a_client_nor_an_engine() -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "rich", "torch", "docker"}
    engines = "{m for m in sys.modules if m.startswith('engines.')}"
    code = (
        f"import sys, launcher.supervise.supervisor\nassert {engines} == {{f'engines.{{name}}' for name in {CONTRACT}}}"
    )

    assert heavy & loaded_by(code) == set()


def test_import_launcher_alone_loads_nothing_heavy() -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "psutil", "rich", "torch"}

    assert heavy & loaded_by("import launcher") == set()
