"""Composes each config once in a run of the tests: most tests ask for one that another has asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.config import compose
from launcher.paths import shipped, user_config

_CONF = Path(__file__).parent.parent / "conf"


class Composed:
    """Stands in for Hydra where words, root and engines are those of an earlier time, and the files are ours alone.

    Composing is pure but for the files that it reads and what a word looks up outside (`${oc.env:…}`).
    """

    def __init__(self) -> None:
        self.anew = compose._composed
        self._kept: dict[object, Any] = {}

    def __call__(
        self, root: str, overrides: Sequence[str], config_dir: str | None = None, engine_hint: str = ""
    ) -> Any:
        foreign = config_dir is not None or user_config().exists() or shipped("conf") != _CONF
        if foreign or any("${" in word or word.startswith("hydra") for word in overrides):
            return self.anew(root, overrides, config_dir, engine_hint)
        key = (root, *overrides, tuple(registry.names("engine")), registry.engine)
        if key not in self._kept:
            self._kept[key] = self.anew(root, overrides, config_dir, engine_hint)
        return copy.deepcopy(self._kept[key])
