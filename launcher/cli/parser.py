"""A verb's parser and its help, made from its entry in the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from engines.errors import ConfigError
from launcher.cli.table import CONFIG_DIR, VERBS, Word
from launcher.cli.words import HYDRA_FLAGS, check_config_dir
from launcher.suggest import did_you_mean


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """Read `words`, all that was given beside the verb's name.

    Raises `ConfigError` for a word that the verb does not have, a flag without its value, and a flag given twice.
    """
    parser = parser_of(name)
    args, rest = parser.parse_known_intermixed_args(list(words))
    if rest:
        raise ConfigError(_unexpected(name, rest[0]))
    check_config_dir(args.config_dir)
    return args


def parser_of(name: str) -> Parser:
    """Make the parser of the verb `name`."""
    verb = VERBS[name]
    parser = Parser(
        prog=f"rmlaunch {name}",
        description=f"{verb.help[0].upper()}{verb.help[1:]}.",
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    for word in (*verb.words, CONFIG_DIR):
        if word.is_flag:
            parser.add_argument(*word.names, action=_Once, **_value(word), dest=word.dest, help=word.help)
        else:
            many: dict[str, Any] = {"nargs": "*"} if word.many else {}
            parser.add_argument(word.dest, metavar=word.names[0], help=word.help, **many)
    parser.add_argument("-h", "--help", action="help", help="print this and exit")
    return parser


def _value(word: Word) -> dict[str, Any]:
    if not word.value:
        return {"nargs": 0, "default": False}
    return {"metavar": word.value, "type": word.number or str}


def _unexpected(name: str, word: str) -> str:
    flag = word.partition("=")[0]
    if not word.startswith("-") or word == "-":
        return f"{word!r} is one word too many; see rmlaunch {name} --help"
    if flag in HYDRA_FLAGS:
        return f"{name} is rmlaunch's and {flag} is Hydra's; they do not go together"
    known = [spelling for one in VERBS[name].words if one.is_flag for spelling in one.names]
    return f"unknown flag {flag!r}; {did_you_mean(flag, known)}see rmlaunch {name} --help"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours: one sentence, and where the help is."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` with `message` and where the help is."""
        raise ConfigError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class _Once(argparse.Action):
    """A flag that is given at most once."""

    given = False

    def __call__(
        self, _parser: object, namespace: argparse.Namespace, values: Any, spelling: str | None = None
    ) -> None:
        if self.given:
            raise ConfigError(f"{spelling} is given twice; leave one out")
        self.given = True
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
