"""The files that are rendered side by side: none imports in a circle, and each has beside it what it imports."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from engines import torchserve_archive, triton_repository

TEMPLATES = Path(__file__).parents[2] / "templates"
RENDERED = {
    **{f"triton/{name}": modules for name, modules in triton_repository._MODULES.values()},
    **{f"torchserve/{name}": modules for name, modules in torchserve_archive._HANDLERS.values()},
}


def imports(folder: str) -> Mapping[str, set[str]]:
    """Of each file of `folder` and of models, the files of these that it imports, inside functions too."""
    files = {file.name: file for place in ("models", folder) for file in (TEMPLATES / place).glob("*.py")}
    found = {}
    for name, file in files.items():
        nodes = list(ast.walk(ast.parse(file.read_text())))
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found[name] = {f"{module}.py" for module in modules} & files.keys()
    return found


@pytest.mark.parametrize("folder", sorted(path.name for path in TEMPLATES.iterdir() if path.name != "models"))
def test_no_file_is_imported_in_a_circle(folder: str) -> None:
    TopologicalSorter(imports(folder)).prepare()  # raises CycleError, with the circle


@pytest.mark.parametrize("handler", RENDERED)
def test_what_a_file_imports_is_rendered_beside_it(handler: str) -> None:
    folder, _, name = handler.partition("/")
    imported, needed = imports(folder), {name}
    while more := {module for file in needed for module in imported[file]} - needed - {"native.py"}:
        needed |= more  # native.py is there where a library computes: tests/adapters/test_plans.py

    assert needed - {name} == set(RENDERED[handler])
