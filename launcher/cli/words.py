"""Reading a command line: where its verb stands, its overrides, and the errors for what is neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.errors import ConfigError

HELP = ("-h", "--help")
_CONFIG_DIR = ("--config-dir", "-cd")
#: the flags that make Hydra itself run the application; without them composing is all that is needed of it
HYDRA_FLAGS = ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--hydra-help",
               "-p", "--package", "--resolve", "-r", "--run", "--experimental-rerun")  # fmt: skip


def verb_at(words: Sequence[str]) -> int | None:
    """Return the place of the verb in `words`: the first word but for --config-dir and --help, if it is no override.

    None where they have no verb, so that all of them are Hydra's command line.
    """
    place = 0
    while place < len(words):
        word = words[place]
        flag, equals, _ = word.partition("=")
        if flag in _CONFIG_DIR:
            place += 1 if equals else 2
        elif word in HELP:
            place += 1
        else:
            return None if equals or word.startswith(("-", "+", "~")) else place
    return None


def verb_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """Part `words` into the verb's name, such as `logs` or `env list`, and the others; empty for no verb."""
    place = verb_at(words)
    if place is None:
        return "", list(words)
    from launcher.cli.table import GROUPS  # a launch has no verb, and would wait for it

    name, rest = words[place], [*words[:place], *words[place + 1 :]]
    place = verb_at(rest) if name in GROUPS else None
    if place is None:
        return name, rest
    return f"{name} {rest[place]}", [*rest[:place], *rest[place + 1 :]]


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Part `words` into the overrides and the value of --config-dir, None where that is not given.

    Raises `ConfigError` for a flag that nobody knows.
    """
    overrides: list[str] = []
    config_dir: str | None = None
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in _CONFIG_DIR:
            if config_dir is not None:
                raise ConfigError(f"{flag} is given twice; leave one out")
            config_dir = value if equals else next(rest, "")
            if not config_dir:
                raise ConfigError(f"{flag} needs a folder: {flag} DIR")
        elif word.startswith("-") and flag not in HYDRA_FLAGS:
            raise ConfigError(f"unknown flag {word!r}; see rmlaunch --help")
        else:
            overrides.append(word)
    return overrides, config_dir


def check_config_dir(config_dir: str | None) -> None:
    """Raise `ConfigError` where it is given and is no folder."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir!r} is not a folder; give the folder that holds engine/, model/ …")


def refuse_written_secrets(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for a secret in the words of a multirun, which Hydra writes into its folders."""
    from launcher.masking import is_secret, mask_url

    for item in overrides:
        key, _, value = item.partition("=")
        if (is_secret(key.rpartition(".")[2]) and not value.startswith("${oc.env:")) or mask_url(value) != value:
            raise ConfigError(f"{key}: Hydra would write it to its folder; give it as {key}='${{oc.env:NAME}}'")
