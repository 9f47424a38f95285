"""The packages of every engine × device: pinned, and resolvable together where their index can be reached."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines.base import PrepareError
from launcher.config.compose import compose, options
from launcher.config.schema import EnvironmentConf
from launcher.prepare import environments
from launcher.progress import Progress

#: what an option cannot be composed without
NEEDED = {"remote": ("engine.url=http://127.0.0.1:9/v1",)}
#: of a composed engine, and of the builders; another name of an engine has the same
SETS: dict[str, EnvironmentConf] = {
    f"{config.engine.name}-{key}": conf
    for config in (compose([f"engine={option}", *NEEDED.get(option, ())]) for option in options("engine"))
    for key, conf in config.engine.environments.items()
} | {f"build-{name}": conf for name, conf in compose([]).builders.items()}
#: what needs a vendor's own index, which a test cannot count on
VENDORS = {name for name, conf in SETS.items() if conf.indexes}


@pytest.mark.parametrize("name", SETS)
def test_every_requirement_is_pinned(name: str) -> None:
    for requirement in SETS[name].requirements:
        package, pin, version = requirement.partition("==")
        assert (bool(package), pin) == (True, "=="), requirement
        assert version, requirement
        assert "*" not in version, requirement


def test_every_npu_set_names_its_vendors_index_and_what_needs_an_account() -> None:
    npus = {name for name in SETS if name.endswith(("-rbln", "-furiosa"))}
    assert npus == {"triton-rbln", "torchserve-rbln", "vllm-rbln", "furiosa-furiosa"}

    for name in npus:
        engine, _, kind = name.partition("-")
        text = (Path(__file__).parent.parent / f"conf/engine/{engine}.yaml").read_text()
        if kind == "rbln":
            assert [index for index in SETS[name].indexes if "pypi.rbln.ai" in index]
            assert re.search(r"- rebel-compiler==\S+ # needs an account", text), name
        else:  # all of it is on PyPI
            assert SETS[name].indexes == []
            assert re.search(r"driver, .* which\n\s+# needs an account", text), name


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in SETS if name not in VENDORS])
def test_the_set_resolves(name: str, tmp_path: Path) -> None:
    resolve(SETS[name], tmp_path)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_set_that_contradicts_itself_does_not_resolve(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="numpy"):
        resolve(EnvironmentConf(["nvidia-pytriton==0.7.0", "numpy==2.4.0"]), tmp_path)


def resolve(conf: EnvironmentConf, folder: Path) -> None:
    """Let uv choose a version of everything, without installing any."""
    overrides = folder / "overrides.txt"
    overrides.write_text("\n".join(conf.overrides) + "\n")
    python = ["--python-version", conf.python] if conf.python else []
    environments.uv(
        ["pip", "compile", "--quiet", *python, "--overrides", str(overrides), "-"],
        "could not resolve",
        Progress(quiet=True),
        stdin="\n".join(conf.requirements) + "\n",
        indexes=conf.indexes,
    )
