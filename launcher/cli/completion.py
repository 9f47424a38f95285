"""Completion in shells: the scripts that `rmlaunch completion SHELL` prints, and the candidates that they ask for.

A script runs `rmlaunch __complete WORD … CURRENT`, the words up to the cursor, and gets a line for each candidate: the
whole word, a tab, and what it means. It is asked at each Tab, so that neither Hydra nor a deployment may be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import ConfigError
from launcher.cli.table import CONFIG_DIR, GROUPS, VERBS, Word, first_words, of_group
from launcher.cli.words import verb_of
from launcher.paths import shipped
from launcher.suggest import unknown

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh", "fish")

Candidate = tuple[str, str]  #: the whole word, and what it means

_TOP_FLAGS = (
    ("--help", "print every command"),
    ("--version", "print the version"),
    ("--config-dir", CONFIG_DIR.help),
    ("-m", "Hydra's multirun: launch, measure and stop each combination"),
    ("--cfg", "Hydra's: print the config"),
)
_HELP = ("--help", "print what the verb takes")


def completion(args: argparse.Namespace) -> int:
    """The verb `completion`: print the script of one shell. Raises `ConfigError` for a shell without one."""
    if args.shell not in SHELLS:
        raise ConfigError(unknown("shell", args.shell, SHELLS))
    sys.stdout.write((shipped("templates") / "completion" / f"rmlaunch.{args.shell}").read_text())
    return 0


def answer(words: Sequence[str]) -> int:
    """Print the candidates for the last of `words`, the ones before it being given."""
    *before, current = words or [""]
    for value, said in dict(candidates(before, current)).items():
        if value.startswith(current):
            sys.stdout.write(f"{value}\t{said}\n")
    return 0


@dataclass(frozen=True, slots=True)
class _Given:
    """The words of one verb up to the cursor."""

    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    awaited: Word | None = None  #: the flag whose value the cursor is at; None where it is at none
    config_dir: str | None = None


def candidates(before: Sequence[str], current: str) -> Iterator[Candidate]:
    """Yield what `current` can become after the words `before`, and more: who asks compares the beginnings."""
    name, rest = verb_of(before)
    words = VERBS[name].words if name in VERBS else ()
    given = _given((*words, CONFIG_DIR), rest)
    if given.awaited:
        yield from _offered(given.awaited, given, current, "")
    elif name in VERBS:
        yield from _of_verb(words, given, current)
    elif current.startswith("-"):
        yield from _TOP_FLAGS if not name else (_HELP,)
    elif name in GROUPS:
        yield from ((verb, VERBS[f"{name} {verb}"].help) for verb in of_group(name))
    elif not name:
        if not given.arguments and not {*given.flags} - {*CONFIG_DIR.names}:
            yield from ((word, GROUPS.get(word) or VERBS[word].help) for word in first_words())
        yield from _overrides(given, current)


def _given(words: Iterable[Word], rest: Sequence[str]) -> _Given:
    spellings = {spelling: word for word in words if word.is_flag for spelling in word.names}
    arguments, flags = list[str](), list[str]()
    awaited: Word | None = None
    config_dir: str | None = None
    ended = False  # after --
    for item in rest:
        flag, equals, value = item.partition("=")
        if awaited is not None:
            config_dir, awaited = (item if awaited is CONFIG_DIR else config_dir), None
        elif ended or not item.startswith("-"):
            arguments.append(item)
        elif item == "--":
            ended = True
        else:
            flags.append(flag)
            word = spellings.get(flag)
            if word is CONFIG_DIR and equals:
                config_dir = value
            awaited = word if word and word.value and not equals else None
    return _Given(tuple(arguments), tuple(flags), awaited, config_dir)


def _of_verb(words: Sequence[Word], given: _Given, current: str) -> Iterator[Candidate]:
    flags = [word for word in (*words, CONFIG_DIR) if word.is_flag]
    spelling, equals, _ = current.partition("=")
    if current.startswith("-"):
        for word in flags:
            if equals and spelling in word.names:
                yield from _offered(word, given, current, f"{spelling}=")
            elif not {*word.names} & {*given.flags}:
                yield from ((name, word.help) for name in word.names if name.startswith("--"))
        yield _HELP
        return
    arguments = [word for word in words if not word.is_flag]
    place = len(given.arguments)
    if place < len(arguments) or (arguments and arguments[-1].many):
        yield from _offered(arguments[min(place, len(arguments) - 1)], given, current, "")


def _offered(word: Word, given: _Given, current: str, prefix: str) -> Iterator[Candidate]:
    if word.offers in OFFERS:
        found: Iterable[Candidate] = OFFERS[word.offers](given, current)
    else:
        found = ((choice, "") for choice in word.offers.split("|") if choice)
    yield from ((f"{prefix}{value}", said) for value, said in found)


# ----------------------------------------------------------------------------------------------------------- offers


def _overrides(given: _Given, current: str) -> Iterator[Candidate]:
    from launcher.cli.keys import overrides

    return overrides(given.arguments, current, given.config_dir)


def _gateway(given: _Given, current: str) -> Iterator[Candidate]:
    from launcher.cli.keys import gateway_overrides

    return gateway_overrides(current, given.config_dir)


def _sampling(_given: _Given, _current: str) -> Iterator[Candidate]:
    from dataclasses import fields

    from engines.base import Sampling

    return ((f"{field.name}=", "") for field in fields(Sampling))


def _deployments(*, running: bool, ended: bool) -> Callable[[_Given, str], Iterator[Candidate]]:
    """Names from the state folder as they stand there: nobody is asked. One whose state cannot be read is in both."""

    def names(given: _Given, _current: str) -> Iterator[Candidate]:
        from launcher import bounded_json
        from launcher.paths import state_root

        for folder in sorted(state_root().glob("deployments/*")):
            state, is_ended = "", None
            try:
                data = bounded_json.read(folder / "state.json")
                state = str(data.get("state", ""))
                is_ended = state in ("STOPPED", "FAILED") and not data.get("leftovers")
            except (OSError, ValueError):  # it is being prepared, or damaged
                pass
            if folder.name not in given.arguments and (is_ended is None or (ended if is_ended else running)):
                yield folder.name, state

    return names


def _artifacts(_given: _Given, _current: str) -> Iterator[Candidate]:
    from launcher.paths import artifacts_root, cache_root

    folders: Iterable[Path] = artifacts_root(cache_root()).glob("[!.]*/")
    return ((path.name, "") for path in sorted(folders) if path.is_dir())


#: what `Word.offers` can be, beside choices; a folder is completed by the shell itself
OFFERS: dict[str, Callable[[_Given, str], Iterable[Candidate]]] = {
    "override": _overrides,
    "gateway": _gateway,
    "sampling": _sampling,
    "deployment": _deployments(running=True, ended=True),
    "running": _deployments(running=True, ended=False),
    "ended": _deployments(running=False, ended=True),
    "artifact": _artifacts,
    "folder": lambda _given, _current: (),
}
