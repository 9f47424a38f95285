"""The typed shape of `device.sdk`: a vendor's closed compiler and runtime, as a config declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.base import MISSING


@dataclass
class CompilerConf:
    """A command that turns a model file into one for the device. {words} in `argv`, `env` and `files` are filled in."""

    argv: list[str] = MISSING  #: found through the engine's environment, then PATH; no shell reads it
    reads: list[str] = MISSING  #: model formats
    output: str = MISSING  #: the file below {output} that it makes
    flags: dict[str, Any] = field(default_factory=dict)  #: {words} of one's own; model.build.<kind> has others
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  #: name below {files} → text
    version: str | None = None  #: what it must be; None takes whatever it says
    version_argv: list[str] = field(default_factory=list)
    version_pattern: str = r"(\d+(?:\.\d+)+)"  #: a regular expression; its first group is the version
    exit_codes: dict[int, str] = field(default_factory=dict)  #: code → what it means


@dataclass
class FunctionConf:
    """One function of the C API, as templates/models/native.py calls it."""

    symbol: str = MISSING
    arguments: list[str] = field(default_factory=list)
    returns: str = "status"  #: status (0 is success), handle or model (NULL is failure), text, or nothing


@dataclass
class LibraryConf:
    """The shared library that runs the model in the serving process."""

    library: str = MISSING  #: a path, or a name that the loader finds
    preload: list[str] = field(default_factory=list)  #: libraries that it needs and would not find
    reads: list[str] = field(default_factory=lambda: ["npu"])  #: model formats, the preferred one first
    functions: dict[str, FunctionConf] = field(default_factory=dict)  #: open, load, run, free, close, error


@dataclass
class SdkConf:
    label: str = MISSING  #: what people call one of the devices
    nodes: str | None = None  #: /dev/acme*: a number for each device stands where the * is; None asks the kind's plugin
    products: dict[str, float] = field(default_factory=dict)  #: product → GiB of memory of one device
    visible_variable: str | None = None  #: makes only the chosen devices visible, numbered from 0; None has no such
    env: dict[str, str] = field(default_factory=dict)  #: of the compiler, and of the program that serves
    simulated: bool = False  #: no device computes, but a program on this processor; it is said wherever it is shown
    compiler: CompilerConf | None = None
    runtime: LibraryConf = MISSING
