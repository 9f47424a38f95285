"""Dataclasses to JSON and back: plans for a supervisor, its news, and kept configs.

Another version of us may have written the JSON: unknown keys are ignored, and missing ones get their defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_PLAIN = (bool, int, float, str)


def load(kind: type[T], data: object) -> T:
    """Make a `kind` from what `dataclasses.asdict` gave. Raises `ValueError` that names the first wrong key."""
    given, strange = understood(kind, data)
    required = [
        field.name
        for field in dataclasses.fields(cast(Any, kind))
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    strange += [f"{name} is missing" for name in required if name not in given]
    if strange:
        raise ValueError(strange[0])
    return kind(**given)


def understood(kind: type, data: object) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of `kind` that `data` has, and a sentence for each one that is not of its type."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{_short(data)} is no object")
    given: dict[str, Any] = {}
    strange: list[str] = []
    for name, hint in get_type_hints(kind).items():
        if name in data:
            try:
                given[name] = _value(hint, data[name])
            except ValueError as exc:
                strange.append(f"{name}: {exc}")
    return given, strange


def _value(kind: Any, value: Any) -> Any:
    """Turn `value` from JSON into the type `kind`: dataclasses, tuples, lists and mappings of them, and optionals."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, type(int | None)):
        return _one_of(parts, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind, value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else load(kind, value)
    if origin in (tuple, list):
        return origin(_value(parts[0], item) for item in _checked(value, isinstance(value, (list, tuple)), "no list"))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = _checked(value, isinstance(value, Mapping), "no object").items()
        return {_key(parts[0], key): _value(parts[1], item) for key, item in pairs}
    if kind is float and type(value) is int:
        return value
    return _checked(value, kind not in _PLAIN or _is(kind, value), f"no {getattr(kind, '__name__', kind)}")


def _one_of(kinds: Sequence[Any], value: Any) -> Any:
    if value is None:
        return _checked(value, type(None) in kinds, "no value")
    first, *others = [kind for kind in kinds if kind is not type(None)]
    try:
        return _value(first, value)
    except ValueError:
        if not others:
            raise
        return _one_of(others, value)


def _member(kind: type[Enum], value: Any) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{_short(value)} is not known") from None


def _key(kind: Any, key: Any) -> Any:
    return int(key) if kind is int else key


def _is(kind: type, value: object) -> bool:
    return type(value) is kind and (kind is not float or math.isfinite(value))  # type: ignore[arg-type]


def _checked(value: Any, right: bool, wrong: str) -> Any:
    if not right:
        raise ValueError(f"{_short(value)} is {wrong}")
    return value


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
