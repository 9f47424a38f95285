"""The table of commands: every verb is there to be called, prints its help, and is the one that the docs name."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import launcher
from engines.base import ConfigError
from launcher.cli import main, table
from launcher.cli.help import usage
from launcher.cli.parser import parse
from tests.test_imports import loaded_by

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", table.VERBS)
def test_every_verb_is_there_to_be_called(name: str) -> None:
    module, _, function = table.VERBS[name].where.partition(":")
    (parameter,) = inspect.signature(getattr(import_module(module), function)).parameters

    assert parameter == "args"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", table.VERBS)
def test_every_verb_prints_its_help(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = table.VERBS[name]

    assert main.run([*name.split(), flag]) == 0

    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert said.startswith(f"usage: rmlaunch {name} ")
    assert verb.help.lower() in words.lower()
    for word in (*verb.words, table.CONFIG_DIR):
        assert word.help in words
        assert all(spelling in words for spelling in word.names)
    assert said.endswith(f"example:\n  {verb.example}\n")


@pytest.mark.parametrize("name", table.VERBS)
def test_the_example_of_a_verb_can_be_read(name: str) -> None:
    import shlex

    program, *words = shlex.split(table.VERBS[name].example)

    assert [program, *words[: len(name.split())]] == ["rmlaunch", *name.split()]
    parse(name, words[len(name.split()) :])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["engine=llamacpp", "--help"], ["--config-dir", str(ROOT)]])
def test_the_overview_has_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == 0

    said = capsys.readouterr().out
    for name, verb in table.VERBS.items():
        assert re.search(rf"^  {re.escape(usage(name))}\s+{re.escape(verb.help)}$", said, re.MULTILINE), name


@pytest.mark.parametrize("group", table.GROUPS)
def test_a_group_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([group, "--help"]) == 0

    said = capsys.readouterr().out
    assert re.findall(rf"^  {group} (\w+)", said, re.MULTILINE) == table.of_group(group)


def rows(file: str) -> list[str]:
    """The first cell of each row that begins with a command."""
    return [
        line.split("|")[1].strip() for line in (ROOT / file).read_text().splitlines() if line.startswith("| `rmlaunch ")
    ]


def test_the_page_of_commands_has_exactly_the_verbs_of_the_table() -> None:
    wanted = [f"| `rmlaunch {usage(name)}` | {verb.help} | `{verb.example}` |" for name, verb in table.VERBS.items()]
    found = (ROOT / "docs/commands.md").read_text().splitlines()

    assert [line for line in found if line.startswith("| `rmlaunch ")] == wanted


def test_the_table_of_the_readme_has_exactly_the_verbs_of_the_table() -> None:
    named = [word for row in rows("README.md") for word in re.findall(r"`(?:rmlaunch )?(\w+)`", row)]

    assert sorted(named) == sorted(table.first_words())


def test_flags_stand_before_the_verb_and_after_it() -> None:
    for words in (["--config-dir", str(ROOT), "ps"], ["ps", f"--config-dir={ROOT}"], [f"-cd={ROOT}", "ps", "--json"]):
        assert main.run(words) == 0
    args = parse("up", ["-d", "engine=llamacpp", "--json", "name=a", "--config-dir", str(ROOT), "port=1"])

    assert args.overrides == ["engine=llamacpp", "name=a", "port=1"]
    assert (args.detach, args.json, args.replace, args.config_dir) == (True, True, False, str(ROOT))


def test_a_text_may_look_like_a_flag() -> None:
    args = parse("infer", ["a", "--", "--help", "max_tokens=1"])

    assert (args.name, args.text, args.sampling) == ("a", "--help", ["max_tokens=1"])


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="-n/--lines: invalid int value: 'many'; see rmlaunch logs --help"):
        parse("logs", ["a", "-n", "many"])


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"rmlaunch {launcher.__version__}\n"


@pytest.mark.parametrize("words", [["ps"], ["--version"], ["logs", "--help"]])
def test_a_verb_loads_what_it_needs(words: list[str]) -> None:
    heavy = {"hydra", "omegaconf", "tritonclient", "numpy", "requests", "rich", "torch", "docker"}

    assert heavy & loaded_by(f"import launcher.cli.main as main\nassert main.run({words!r}) == 0") == set()


def test_a_launch_loads_neither_the_table_nor_argparse() -> None:
    """They would stand between the shell and the engine's program."""
    code = "import sys, launcher.cli.main, launcher.cli.launch"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()

    assert {"argparse", "launcher.cli.table", "launcher.cli.parser"} & {*loaded} == set()
