"""A closed runtime's C API, from `device.sdk.runtime`: checked here, called in the serving process.

`templates/models/native.py` calls it inside the engine: a crash of the library ends a worker of the engine, never the
launcher or a supervisor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import ConfigError, Device, PlanError, ResourceError, TensorSpec
from launcher.config.sdk import FunctionConf, LibraryConf, SdkConf

_WHERE = "device.sdk.runtime"
_NEEDED = ("load", "run")
_ROLES = (*_NEEDED, "open", "free", "close", "error")
_RETURNS = {
    "open": ("status", "handle"),
    "load": ("status", "model"),
    "run": ("status", "nothing"),
    "free": ("status", "nothing"),
    "close": ("status", "nothing"),
    "error": ("text",),
}
_BEFORE = ("device", "devices", "device_count", "null")
_OF_A_RUN = ("inputs", "input_bytes", "input_count", "outputs", "output_bytes", "output_count", "rows")
#: function → the words that its arguments may be
_WORDS = {
    "open": (*_BEFORE, "&handle"),
    "load": (*_BEFORE, "handle", "path", "&model"),
    "run": (*_BEFORE, "handle", "model", *_OF_A_RUN),
    "free": ("handle", "model", "null"),
    "close": ("handle", "null"),
    "error": ("status", "handle", "null"),
}
_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "size", "float", "double")
_LITERAL = re.compile(r"-?\d+(\.\d+)?|'[^']*'")
_OF_ONE_TENSOR = re.compile(r"(input|output)\d+")


class RuntimeDeclaration:
    """A closed runtime's library and its functions, as a config declares them."""

    def __init__(self, sdk: SdkConf) -> None:
        """Check the table. Raises `ConfigError` if it is wrong."""
        self._sdk, self._conf = sdk, sdk.runtime
        self.reads = tuple(self._conf.reads)
        _check(self._conf)

    def given(self, device: Device, outputs: Sequence[TensorSpec]) -> Mapping[str, Any]:
        """Return the table for the serving process. Raises `PlanError` if an output's size is free after the first."""
        for output in outputs:
            if any(size < 0 for size in output.shape[1:]):
                raise PlanError(
                    f"model.outputs: {output} has a free size after the first, and a C library must be given memory of "
                    "the right size; give it a number"
                )
        # If only the chosen devices are visible, the library counts them from 0.
        ids = range(device.count) if self._sdk.visible_variable else device.ids
        return {
            "library": self._conf.library,
            "preload": list(self._conf.preload),
            "devices": list(ids),
            "functions": {
                role: {"symbol": found.symbol, "arguments": list(found.arguments), "returns": found.returns}
                for role, found in self._conf.functions.items()
            },
        }

    def check_there(self) -> None:
        """Raise `ResourceError` if a library that is named by its path is not there."""
        for key, path in (("library", self._conf.library), *(("preload", path) for path in self._conf.preload)):
            if "/" in path and not Path(path).is_file():
                raise ResourceError(
                    f"{_WHERE}.{key}={path!r}: there is no such file; install the runtime, or change it"
                )


def _check(conf: LibraryConf) -> None:
    if missing := [role for role in _NEEDED if role not in conf.functions]:
        raise ConfigError(f"{_WHERE}.functions.{missing[0]} is missing; a runtime has at least load and run")
    for role, function in conf.functions.items():
        if role not in _ROLES:
            raise ConfigError(f"{_WHERE}.functions.{role} is not known; known: {', '.join(_ROLES)}")
        _check_function(role, function)


def _check_function(role: str, function: FunctionConf) -> None:
    where = f"{_WHERE}.functions.{role}"
    if not re.fullmatch(r"[A-Za-z_]\w*", function.symbol):
        raise ConfigError(f"{where}.symbol={function.symbol!r} is no name of a C function")
    if function.returns not in _RETURNS[role]:
        raise ConfigError(f"{where}.returns={function.returns!r} is not allowed; allowed: {', '.join(_RETURNS[role])}")
    for argument in function.arguments:
        word, colon, kind = argument.rpartition(":") if _typed(argument) else (argument, "", "")
        if colon and kind not in _TYPES:
            raise ConfigError(f"{where}.arguments: {argument!r}: {kind!r} is no type; known: {', '.join(_TYPES)}")
        of_one = role == "run" and _OF_ONE_TENSOR.fullmatch(word)
        if word not in _WORDS[role] and not of_one and not _LITERAL.fullmatch(word):
            known = ", ".join((*_WORDS[role], *(("input0", "output0") if role == "run" else ())))
            raise ConfigError(
                f"{where}.arguments: {word!r} means nothing; known: {known}, numbers, and texts in single quotes"
            )
    gives = {"open": "handle", "load": "model"}.get(role)
    if gives and function.returns != gives and f"&{gives}" not in function.arguments:
        raise ConfigError(f"{where} gives no {gives}: return it, or have &{gives} among the arguments")


def _typed(argument: str) -> bool:
    return ":" in argument and not argument.endswith("'")
