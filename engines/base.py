"""The contract between the launcher and one serving engine.

An engine module is a translator. `Engine.plan` turns a resolved `ServeSpec` into a `LaunchPlan`, which is plain
data; the launcher acts on it. `Engine.infer` speaks the protocol of a server that is already running. This is also
the one module that an engine imports for the contract's types.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engines.container import Container, ContainerSettings, ImageBuild, Mount, Port
from engines.dialect import Dialect, OpenAI
from engines.endpoint import LOOPBACK, LOOPBACK_ADDRESS, Endpoint, Endpoints, KeyFile
from engines.environment import Environment
from engines.errors import (
    ConfigError,
    DeploymentError,
    ExitedBeforeReady,
    InferenceError,
    PlanError,
    PrepareError,
    ReadyTimeout,
    RequestError,
    ResourceError,
    RmLaunchError,
    StoppedBeforeReady,
)
from engines.plan import (
    FILES,
    OUTPUT,
    BuildProfile,
    BuildStep,
    Device,
    HttpCheck,
    LaunchPlan,
    Memory,
    MemoryUse,
    Model,
    Probes,
    ProbeSettings,
    ServeSpec,
    TensorSpec,
)
from engines.protocol import (
    Answer,
    Chunk,
    EmbedRequest,
    GenerateRequest,
    Request,
    Sampling,
    Target,
    TensorRequest,
    Tensors,
    Vector,
)

__all__ = [
    "FILES", "LOOPBACK", "LOOPBACK_ADDRESS", "MISSING", "OUTPUT",
    "Answer", "BuildProfile", "BuildStep", "Capabilities", "Chunk", "ConfigError", "Container",
    "ContainerSettings", "DeploymentError",
    "Device", "Dialect", "EmbedRequest", "Endpoint", "Endpoints", "Engine", "Environment", "ExitedBeforeReady",
    "GenerateRequest", "HttpCheck", "ImageBuild", "InferenceError", "KeyFile", "LaunchPlan", "Memory", "MemoryUse",
    "Model", "Mount", "NoOptions", "OpenAI", "PlanError", "Port", "PrepareError", "ProbeSettings",
    "Probes", "ReadyTimeout", "Request", "RequestError", "ResourceError", "RmLaunchError", "Sampling", "ServeSpec",
    "StoppedBeforeReady", "Target", "TensorRequest", "TensorSpec", "Tensors", "Vector",
]  # fmt: skip

#: OmegaConf's mark for a value that must be given; written out, because importing it costs a tenth of a second
MISSING: Any = "???"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The abilities of an engine, as data: checked while planning, so that nothing fails half-way."""

    formats: Mapping[str, Mapping[str, tuple[str, ...]]]  #: device kind → task → model formats, the preferred first
    libraries: bool = False  #: tensors through a C library that a device's config declares (`device.sdk`)
    api_key: bool = False  #: the server can demand a key that is given to it
    runtimes: tuple[str, ...] = (
        "process",
        "docker",
    )  #: runtimes for its program; `auto` takes the first that can be had

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of devices that the engine serves on."""
        return tuple(self.formats)

    def tasks(self, kind: str) -> tuple[str, ...]:
        """Return the tasks that the engine can do on a device of this kind; () if none."""
        return tuple(self.formats.get(kind, ()))


@dataclass
class NoOptions:
    """The options of an engine that has no config keys of its own."""


class Engine(ABC):
    """One serving program. A plugin writes `plan` and `infer`; an instance belongs to one deployment's client."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    ports: ClassVar[tuple[str, ...]] = ("http",)  #: the names of the ports that the server listens on
    #: a dataclass of the config keys that only this engine has; their values are in `ServeSpec.options`
    Options: ClassVar[type] = NoOptions

    @abstractmethod
    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Return the plan for `spec`.

        Pure: no files, sockets, subprocesses, clock or `os.environ`. Equal specs give equal plans.
        Raises `PlanError` naming the config key to change.
        """

    @abstractmethod
    def infer(self, target: Target, request: Request) -> Iterator[Answer]:
        """Send one request to a ready server; yield text as it arrives, one vector per text to embed, or the tensors.

        Blocks between items for at most `target.timeout_s`. Called from several threads at once. Closing the
        iterator early cancels the request. Raises `InferenceError` with the server's words.
        """

    def formats(self, kind: str, task: str, options: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        """Return the model formats that are read, the preferred one first: the capabilities', unless options matter."""
        return self.capabilities.formats[kind][task]

    def device_count(self, kind: str, options: Mapping[str, Any]) -> int | None:  # noqa: ARG002
        """Return how many devices the options ask for; None if they say nothing about it."""
        return None

    def memory(
        self,
        model: Model,  # noqa: ARG002
        device: Device,  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        args: Mapping[str, Any],  # noqa: ARG002
    ) -> MemoryUse | None:
        """Return how the engine would use the memory of `device` for `model`; None if unknown, and nothing is checked.

        Pure. The format of `model` is that of the source.
        """
        return None

    def external_program(self, kind: str, options: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """Return the server's program if its packages have none, and this machine or an image must; else None."""
        return None

    def system_libraries(self, key: str) -> Mapping[str, str]:  # noqa: ARG002
        """Return shared libraries that the packages of `environment_key` lack, and Debian's package of each.

        {python} stands for the version of their Python.
        """
        return {}

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Return the key of the config's `environments` and `images`: the device kind, unless options matter."""
        return kind

    def dialect(self, plan: LaunchPlan, options: Mapping[str, Any]) -> Dialect:  # noqa: ARG002
        """Return how the gateway speaks to the server of `plan`: as OpenAI's clients do, unless overridden."""
        return OpenAI(plan.model.id)

    def close(self) -> None:
        """Let go of connections that `infer` kept open. A second call does nothing."""
