"""Dataclasses to JSON and back: for plans on their way to a supervisor, and for composed configs that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def load(kind: type[T], data: Mapping[str, Any]) -> T:
    """The `kind` that `dataclasses.asdict` took apart. Raises `TypeError` or `KeyError` for anything else."""
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], item) for name, item in data.items()})


def _value(kind: Any, value: Any) -> Any:
    """`value` from JSON as the type `kind`: dataclasses, tuples, lists and mappings of them, and optionals."""
    if value is None:
        return None
    if get_origin(kind) in (Union, type(int | None)):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return load(kind, value)
    if get_origin(kind) in (tuple, list):
        return get_origin(kind)(_value(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is dict:
        key_kind, item_kind = get_args(kind)
        return {int(key) if key_kind is int else key: _value(item_kind, item) for key, item in value.items()}
    return value
