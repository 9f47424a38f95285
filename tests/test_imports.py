"""Imports go one way, and what a call does not need is not loaded."""

from __future__ import annotations

import ast
import json
import os
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


#: The picture of ARCHITECTURE.md: the rooms that each room of launcher/ may import. Everybody may import the root.
ROOMS: dict[str, set[str]] = {
    "cli": {"gateway", "serving", "planning", "fit", "prepare", "deployments", "config", "supervise", "runtimes",
            "devices"},
    "gateway": {"serving", "deployments", "config", "supervise"},
    "serving": {"planning", "prepare", "deployments", "config", "supervise"},
    "planning": {"fit", "deployments", "config", "runtimes", "devices"},
    "prepare": {"config", "runtimes", "devices"},
    "fit": {"config"},
    "deployments": {"supervise", "runtimes"},
    "config": {"devices"},
    "supervise": {"runtimes", "devices"},
    "runtimes": set(),
    "devices": set(),
}  # fmt: skip
#: Modules of the root that lead into rooms: the program, the Python surface, and the plugins by name.
DOORS = {"__init__": {"serving"}, "__main__": {"cli"}, "registry": {"runtimes", "devices"}}


def graph() -> dict[str, set[str]]:
    """Every module of launcher and engines, and those of them that it imports, inside functions too."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for top in ("launcher", "engines")
        for file in (ROOT / top).rglob("*.py")
    }
    packages = {"launcher", *(f"launcher.{name}" for name in ROOMS)}  # their names are those of modules in them
    return {
        name: {found for found in imported(file) if found in files and found not in packages} - {name}
        for name, file in files.items()
    }


def room(module: str) -> str:
    """The folder of launcher/ that `module` is in; empty for the root's own modules and for engines."""
    top, _, rest = module.partition(".")
    return found if top == "launcher" and (found := rest.partition(".")[0]) in ROOMS else ""


def test_the_rooms_are_those_of_the_picture() -> None:
    folders = {path.parent.name for path in (ROOT / "launcher").glob("*/__init__.py")}

    assert folders == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_the_picture_allows(name: str) -> None:
    arrows = {
        (module, found)
        for module, imports in graph().items() if room(module) == name
        for found in imports if room(found) not in {"", name, *ROOMS[name]}
    }  # fmt: skip

    assert arrows == set()


def test_the_root_leads_into_rooms_by_its_doors_alone() -> None:
    arrows = {
        (module, found)
        for module, imports in graph().items() if module.startswith("launcher") and not room(module)
        for found in imports if room(found) and room(found) not in DOORS.get(module.partition(".")[2] or "__init__", ())
    }  # fmt: skip

    assert arrows == set()


def test_no_imports_run_in_a_circle() -> None:
    left = graph()
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in free}
    # What is left is in a circle, or imports one; what nobody of them imports is in none.
    while outer := left.keys() - {found for imports in left.values() for found in imports}:
        left = {name: imports for name, imports in left.items() if name not in outer}

    assert left == {}


def loaded_rooms(module: str) -> set[str]:
    """The rooms of launcher/ that are loaded in a new interpreter after `module` was imported."""
    code = f"import sys, {module}\nprint(*(name for name in sys.modules if name.startswith('launcher.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {room(name) for name in done.stdout.split()} - {""}


def test_a_supervisor_loads_neither_config_nor_planner_nor_anything_of_its_owner() -> None:
    assert loaded_rooms("launcher.supervise.supervisor") == {"supervise", "runtimes"}


def test_the_gateway_loads_no_planner() -> None:
    assert loaded_rooms("launcher.gateway.main") & {"cli", "planning", "prepare", "fit"} == set()


#: Plans each of its arguments, and prints what had effects. A process of its own: an audit hook cannot be removed.
PLANS = """
import json, os, sys
from launcher.config.compose import normalized
from launcher.planning.machine import this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle

EFFECTS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.mkdir",
           "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
           "shutil.")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
seen, watching = [], False

def hook(event, args):
    if watching and (event.startswith(EFFECTS) or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)):
        seen.append(f"{event} {args[0]}")

def plan(words):
    machine = this_machine()
    engine, spec = resolve(settle(normalized(words), machine).config, machine)
    return engine.plan(spec)

sys.addaudithook(hook)
for line in sys.argv[1:]:
    plan(line.split())  # composing keeps its result, and is no part of planning
    watching = True
    plan(line.split())
    watching = False
print(json.dumps(seen))
"""


def test_planning_writes_nothing_and_starts_nothing() -> None:
    plans = [
        "engine=llamacpp device=cpu",
        "engine=triton device=cpu runtime=docker",
        "engine=vllm device=gpu device.assume=H100 model=llama3-8b runtime=process",
        "engine=triton device=rbln device.assume=RBLN-CA25 device.count=4 model=llama3-8b",
        "engine=furiosa device=furiosa model=llama3-8b runtime=process",
        "engine=torchserve device=cpu model=minilm",
        "engine=remote device=remote engine.url=http://a/v1 model=remote model.id=a",
    ]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    done = subprocess.run([sys.executable, "-c", PLANS, *plans], capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("code", ["", "assert launcher.cli.main.run(['--help']) == 0"])
def test_help_loads_nothing_heavy(code: str) -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "psutil", "rich", "torch"}

    assert heavy & loaded_by(f"import launcher.cli.main\n{code}") == set()


def test_a_supervisor_is_started_before_anything_large_is_loaded() -> None:
    """Its start takes as long as planning, so each import before it costs a launch twice."""
    code = "import sys, launcher.cli.main, launcher.cli.launch, launcher.deployments.spawn\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"engines.base", "engines.plan", "dataclasses", "json", "logging"} & {*done.stdout.split()} == set()


def test_the_supervisor_loads_neither_hydra_nor_a_client_nor_an_engine() -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "rich", "torch", "docker"}
    engines = "{m for m in sys.modules if m.startswith('engines.')}"
    code = (
        f"import sys, launcher.supervise.supervisor\nassert {engines} == {{f'engines.{{name}}' for name in {CONTRACT}}}"
    )

    assert heavy & loaded_by(code) == set()


def test_a_supervisor_starts_its_engine_before_it_loads_openssl_or_logging() -> None:
    code = "import launcher.supervise.supervisor, launcher.runtimes.process"

    assert {"_hashlib", "_ssl", "hashlib", "logging", "secrets", "ssl"} & loaded_by(code) == set()


@pytest.mark.parametrize("file", sorted((ROOT / "launcher/supervise").glob("*.py")), ids=lambda file: file.stem)
def test_what_a_supervisor_loads_knows_nothing_of_the_owners_side(file: Path) -> None:
    rooms = ("cli", "config", "deployments", "fit", "gateway", "planning", "prepare", "serving")
    theirs = tuple(f"launcher.{room}" for room in rooms)

    assert [name for name in imported(file) if name.startswith(theirs)] == []


def test_import_launcher_alone_loads_nothing_heavy() -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "psutil", "rich", "torch"}

    assert heavy & loaded_by("import launcher") == set()
