"""The inputs of conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.base import BuildStep, Environment
from launcher.paths import artifacts_root


class Compiler(Protocol):
    """A device's own compiler, as a config declares it."""

    reads: tuple[str, ...]  #: model formats

    def step(self, source: str, model_format: str, shop: Workshop, version: str) -> BuildStep:
        """Return the build step that compiles the file at `source`."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that a conversion's build step may depend on, besides its source."""

    cache: Path
    templates: Path
    model_id: str
    identity: str  #: identity of the weights
    context_length: int
    dtype: str
    product: str | None  #: the device's product; None is unknown
    device_count: int
    settings: Mapping[str, Any]  #: model.build.<device kind>
    converter: Environment  #: has torch, transformers and gguf
    exporter: Environment  #: has torch, transformers and onnx
    serving: Environment  #: the engine's own; a vendor's compiler must be of the version that serves
    compiler: Compiler | None = None  #: the device's own; None if the config declares none
    compiler_version: str = ""

    @property
    def artifacts(self) -> Path:
        """The folder below `cache` that holds the output of build steps."""
        return artifacts_root(self.cache)
