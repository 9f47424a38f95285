"""The typed shape of `device.sdk`: a vendor's closed compiler and runtime, declared in a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.base import MISSING


@dataclass
class CompilerConf:
    """A command that turns a model file into one for the device. {words} in `argv`, `env` and `files` are filled in."""

    argv: list[str] = MISSING  #: found through the engine's environment, then PATH; no shell reads it
    reads: list[str] = MISSING  #: model formats
    output: str = MISSING  #: path of the compiled file below {output}
    flags: dict[str, Any] = field(default_factory=dict)  #: {word} → value; those of model.build.<kind> come on top
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  #: name below {files} → text
    version: str | None = None  #: required version; None takes any
    version_argv: list[str] = field(default_factory=list)
    version_pattern: str = r"(\d+(?:\.\d+)+)"  #: a regular expression; its first group is the version
    exit_codes: dict[int, str] = field(default_factory=dict)  #: exit code → its meaning


@dataclass
class FunctionConf:
    """A function of the C API, as templates/models/native.py calls it."""

    symbol: str = MISSING
    arguments: list[str] = field(default_factory=list)
    returns: str = "status"  #: status (0 is success), handle or model (NULL is failure), text, or nothing


@dataclass
class LibraryConf:
    """The shared library that runs the model in the serving process."""

    library: str = MISSING  #: a path, or a name that the loader finds
    preload: list[str] = field(default_factory=list)  #: libraries to load first, which it needs and would not find
    reads: list[str] = field(default_factory=lambda: ["npu"])  #: model formats, the preferred one first
    functions: dict[str, FunctionConf] = field(default_factory=dict)  #: open, load, run, free, close, error


@dataclass
class SdkConf:
    """A vendor's SDK: its devices, how they are found and shown, its compiler if any, and its runtime."""

    label: str = MISSING  #: the device's name for people
    nodes: str | None = None  #: pattern of device nodes, * for the number: /dev/acme*; None asks the kind's plugin
    products: dict[str, float] = field(default_factory=dict)  #: product → GiB of memory of one device
    visible_variable: str | None = None  #: variable that hides all but the chosen devices, which then count from 0
    env: dict[str, str] = field(default_factory=dict)  #: variables of the compiler, and of the program that serves
    simulated: bool = False  #: a program on this processor computes, no device; every report says so
    compiler: CompilerConf | None = None
    runtime: LibraryConf = MISSING
