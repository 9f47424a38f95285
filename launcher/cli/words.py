"""Reading a command line: its overrides, its flags, and the errors for what is neither."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from engines.base import ConfigError

if TYPE_CHECKING:
    pass


#: what makes Hydra itself run the application; without them composing is all that is needed of it
HYDRA_FLAGS = ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--hydra-help",
                "-p", "--package", "--resolve", "-r", "--run", "--experimental-rerun")  # fmt: skip


def refuse_written_secrets(overrides: Sequence[str]) -> None:
    """Hydra writes the words of a multirun into its folders."""
    from launcher.masking import is_secret, mask_url

    for item in overrides:
        key, _, value = item.partition("=")
        if (is_secret(key.rpartition(".")[2]) and not value.startswith("${oc.env:")) or mask_url(value) != value:
            raise ConfigError(f"{key}: Hydra would write it to its folder; give it as {key}='${{oc.env:NAME}}'")


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides and the value of --config-dir. Raises `ConfigError` for a flag that nobody knows."""
    overrides: list[str] = []
    config_dir: str | None = None
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            config_dir = value if equals else next(rest, "")
            if not config_dir:
                raise ConfigError(f"{flag} needs a folder: {flag} DIR")
        elif word.startswith("-") and flag not in HYDRA_FLAGS:
            raise ConfigError(f"unknown flag {word!r}; see rmlaunch --help")
        else:
            overrides.append(word)
    return overrides, config_dir


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {' '.join(self.format_usage().split())}")
