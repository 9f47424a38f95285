"""The help that is printed without a verb: the overview, and the verbs of one group. Both are made from the table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from launcher.cli.keys import CONFIG_GROUPS
from launcher.cli.table import GROUPS, SECTIONS, VERBS, of_group

_LAUNCHES = (
    ("engine=… [device=…] [model=…] [key=value …]", "launch in the foreground; Ctrl-C drains and stops"),
    ('… prompt="What is …?"', "launch, ask once, print the answer, stop"),
    ('-m engine=triton,llamacpp … prompt="…"', "launch, measure and stop each combination; one report"),
)
_FLAGS = (
    ("VERB --help", "print what one verb takes, with an example"),
    ("--version", "print the version"),
    ("--config-dir DIR", "look for config groups (model/mine.yaml) there too; $XDG_CONFIG_HOME/rmlaunch always is"),
    ("--cfg job, --info, --hydra-help, -m, --shell-completion", "Hydra's own"),
)
_WIDTH = 54


def overview() -> int:
    """Print every command with its words and a line of help, and the options of the config groups."""
    from launcher.config.compose import options

    lines = ["rmlaunch: plan, start, prove and stop model servers", ""]
    lines += _rows((f"rmlaunch {words}", said) for words, said in _LAUNCHES)
    for title, verbs in SECTIONS.items():
        lines += ["", f"{title}:", *_rows((usage(name), verb.help) for name, verb in verbs.items())]
    lines += ["", "for every command:", *_rows(_FLAGS)]
    lines += ["", "config groups:", *(f"  {group:<8} {', '.join(options(group))}" for group in CONFIG_GROUPS)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def group(name: str) -> int:
    """Print the verbs of one group."""
    lines = [f"rmlaunch {name}: {GROUPS[name]}", ""]
    lines += _rows((usage(f"{name} {verb}"), VERBS[f"{name} {verb}"].help) for verb in of_group(name))
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, "", f"rmlaunch {name} VERB --help tells more"]))
    return 0


def usage(name: str) -> str:
    """Return the verb with its words: `logs NAME [-f] [-n LINES] [--raw]`."""
    return " ".join((name, *(word.usage for word in VERBS[name].words)))


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for left, right in rows:
        yield f"  {left:<{_WIDTH}}  {right}" if len(left) <= _WIDTH else f"  {left}\n  {'':<{_WIDTH}}  {right}"
