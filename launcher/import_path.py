"""Import what a text names, such as a plugin or a verb."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any


def load(path: str) -> Any:
    """Return the object at `module:name`, or `module:name.name`. Raises `ImportError` or `AttributeError`."""
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))
