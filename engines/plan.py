"""A plan's input and output, as plain data: `ServeSpec` → `LaunchPlan`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engines.container import Container, Mount, Port
from engines.endpoint import LOOPBACK_ADDRESS, Endpoint, Endpoints, KeyFile
from engines.environment import Environment

#: placeholders in a build step's `argv`: the folder to fill, and the folder that holds the step's `files`
OUTPUT, FILES = "{output}", "{files}"

# ---------------------------------------------------------------- what to serve: the engine's whole view of the config


@dataclass(frozen=True, slots=True)
class Device:
    """The devices of one deployment, as resolved; `assumed` marks hardware that was described, not found."""

    kind: str
    ids: tuple[int, ...] = (0,)
    product: str | None = None
    memory_bytes: int | None = None  #: bytes of one device
    assumed: bool = False
    simulated: bool = False  #: computed by a program on the host's processor
    env: Mapping[str, str] = field(default_factory=dict)  #: variables that make only `ids` visible to the engine

    @property
    def count(self) -> int:
        """The number of devices."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a tensor model; `dtype` is numpy's name, and -1 in `shape` stands for any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('any' if size < 0 else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Model:
    """The model in the form that the engine reads; `path` exists once the plan has been prepared."""

    id: str
    source: str
    format: str
    path: str
    task: str = "generate"
    context_length: int = 2048
    dtype: str = "bfloat16"
    chat: bool = True
    batch_size: int | None = None  #: the batch that the artifact was compiled for; None if it was not compiled for one
    identity: str = ""  #: identity of the weights; a key for everything that is made from them
    inputs: tuple[TensorSpec, ...] = ()  #: a tensor model's, in the order of its own arguments
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """An engine's use of the memory of its devices, as far as it is known before the engine has seen the model.

    The defaults are those of an engine that has one copy of the weights on one device.
    """

    context_length: int  #: tokens of one sequence
    context_key: str = "model.context_length"  #: the config key that sets it
    sequences: int = 1  #: sequences of that length for which there must be room at the same time
    weights_dtype: str = "bfloat16"  #: the type that weights are cast to unless they are quantized
    as_stored: bool = False  #: weights stay as they are in the file (GGUF)
    kv_dtype: str = "bfloat16"
    kv_pool_bytes: int | None = None  #: the size of the KV cache, if it does not depend on the sequences
    kv_pool_key: str = ""  #: the config key that sets it
    copies: int = 1  #: copies of the weights on a device
    spread: str = ""  #: over several devices: by "heads" (tensor parallelism), by "layers", "any" number; "" is not
    replicas: int = 1  #: groups that the devices are split into, each with all of the weights
    stages: int = 1  #: groups of layers; the devices of a group share its heads
    nodes: int = 1  #: machines with these devices
    usable: float = 1.0  #: the share of a device's memory that the engine takes at most
    usable_key: str = ""  #: the config key that sets it
    reserved_bytes: int = 0  #: bytes of each device that no program gets
    overhead_bytes: int = 0  #: bytes of programs and libraries, on each device
    link_bytes: int = 0  #: more bytes on each device if several work together
    tokens_at_once: int = 512  #: tokens of prompts in one step
    logits_at_once: int = 1  #: positions whose logits are there at the same time


@dataclass(frozen=True, slots=True)
class Memory:
    """The estimate for one device, in bytes."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int  #: programs and libraries
    usable: int  #: bytes of the device that the engine may have

    @property
    def needed(self) -> int:
        """The sum of all parts, in bytes of one device."""
        return self.weights + self.kv_cache + self.activations + self.overhead


@dataclass(frozen=True, slots=True)
class BuildProfile:
    """The way in which an artifact is made: with the weights, everything that it depends on."""

    target: str  #: the hardware it runs on: a product, a kind of device, or `any`
    compiler: str
    compiler_version: str  #: the compiler's own word, or the pinned packages with it; empty if neither is known
    flags: Mapping[str, Any] = field(default_factory=dict)
    interface: str = ""  #: the format of the artifact, as an engine reads it

    def place(self, folder: str, model_id: str, identity: str) -> str:
        """Return the artifact's path: one below `folder` for each profile and each `identity` of weights."""
        import hashlib  # not at the top: a supervisor's start would wait 2 ms for OpenSSL

        what = [identity, self.target, self.compiler, self.compiler_version, dict(self.flags), self.interface]
        key = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]
        return f"{folder}/{model_id}-{self.interface}-{key}"


@dataclass(frozen=True, slots=True)
class BuildStep:
    """A command that makes one artifact; it fills the folder that stands for `OUTPUT` in `argv`.

    That is a temporary folder, which is renamed to `output` when the command has succeeded, so that a half-made
    artifact is never used. `output` names everything that the artifact depends on: if it exists, nothing is run.
    """

    name: str
    argv: tuple[str, ...]
    output: str
    environment: Environment
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  #: name → text, below the folder that stands for `FILES`
    made: str = ""  #: the file below `output` that is the model; empty if the whole folder is
    model_id: str = ""
    profile: BuildProfile | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)  #: exit code → what the command means by it

    @property
    def model_path(self) -> str:
        """The path that the next step, or the engine, reads."""
        return f"{self.output}/{self.made}" if self.made else self.output


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """The model to serve and the place for it: everything that `Engine.plan` may look at."""

    name: str
    engine: str
    device: Device
    model: Model
    runtime: str
    environment: Environment  #: the packages, as the engine's program finds them, in a container too
    bind: str  #: the address that the server listens on
    ports: tuple[int, ...]  #: one for each of the engine's `ports`
    run_dir: str  #: the folder that the plan's files are written to
    artifacts: str = "/artifacts"  #: the folder of everything that build steps make
    options: Mapping[str, Any] = field(default_factory=dict)  #: the engine's own config keys
    args: Mapping[str, Any] = field(default_factory=dict)  #: flags handed to the engine's program
    env: Mapping[str, str] = field(default_factory=dict)  #: set by the user for the engine's program
    inherit: tuple[str, ...] = ()  #: variables of the user's shell for the program: names, or beginnings with a *
    templates: Mapping[str, str] = field(default_factory=dict)  #: file name → text: templates/<engine>/ and models/
    builds: tuple[BuildStep, ...] = ()
    #: the C library that runs the model, as templates/models/native.py reads it; empty if the engine runs it itself
    library: Mapping[str, Any] = field(default_factory=dict)
    container: Container | None = None  #: the program's container; the plan adds what the engine needs of it
    published: str = ""  #: the address of this machine at which a container's server is reached
    tools: Environment | None = None  #: on this machine, for build steps of the engine; None is `environment`
    program: str | None = None  #: the user's own server binary
    api_key: str | None = None
    stop_grace_s: float = 10.0  #: from TERM to KILL
    probes: ProbeSettings = field(default_factory=lambda: ProbeSettings())
    memory: Memory | None = None  #: the estimate for each device; None is not known
    notes: tuple[str, ...] = field(default=(), compare=False)  #: sentences for the user about the choices made

    @property
    def connect_host(self) -> str:
        """The address that a client on this machine uses; a wildcard bind is reached over loopback."""
        host = self.published or self.bind
        return {"0.0.0.0": LOOPBACK_ADDRESS, "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)

    @property
    def private_bind(self) -> str:
        """The address for a port that only this machine may reach; a container's is published on loopback alone."""
        return self.bind if self.container else LOOPBACK_ADDRESS

    @property
    def builder(self) -> Environment:
        """The environment for build steps that need the engine's packages."""
        return self.tools or self.environment


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """The times to wait, all in seconds."""

    startup_timeout_s: float = 600.0
    liveness_period_s: float = 10.0
    liveness_timeout_s: float = 5.0
    liveness_failures: int = 3
    stall_timeout_s: float = 300.0  #: for a start that shows no sign of life
    busy_timeout_s: float = 300.0  #: for a server that computes and answers nothing: until then it counts as busy


# ----------------------------------------------------------------------------- what will be done: plain data, JSON-able


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """One HTTP request; it passes on status 200 with `expect`, if given, in the JSON body.

    `expect` is a dotted path, such as `choices.0.text`, in which `*` goes through a whole list. The value at the path
    must be there, and not 0 or empty; with `among`, one of the values at the path must be that.
    """

    path: str
    method: str = "GET"
    body: Mapping[str, Any] | None = None
    expect: str | None = None
    among: str | None = None
    endpoint: Endpoint | None = None  #: the address to ask; None is `Endpoints.http`
    key: KeyFile | None = None  #: the key to send; None is the plan's
    final: bool = False  #: True: a server that answers otherwise always will, so nobody waits for it


@dataclass(frozen=True, slots=True)
class Probes:
    """Kubernetes' three probes: `startup` is the engine's own word, `readiness` and `liveness` are real requests.

    While the counters that `progress` names grow, at `Endpoints.metrics`, there is no need to ask for liveness.
    """

    startup: HttpCheck
    readiness: HttpCheck
    liveness: HttpCheck
    settings: ProbeSettings
    progress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything a runtime needs, and nothing that it has to look up."""

    name: str
    engine: str
    device: Device
    model: Model
    runtime: str
    environment: Environment
    argv: tuple[str, ...]
    endpoints: Endpoints
    probes: Probes
    run_dir: str
    env: Mapping[str, str] = field(default_factory=dict)
    inherit: tuple[str, ...] = ()  #: as in `ServeSpec`; the runtime reads their values
    files: Mapping[str, str] = field(default_factory=dict)  #: path below `run_dir` → text
    links: Mapping[str, str] = field(default_factory=dict)  #: path below `run_dir` → what it points to
    writes: tuple[str, ...] = ()  #: folders below `run_dir`, made for the program to write to
    leftovers: tuple[str, ...] = ()  #: glob patterns of files outside `run_dir` that a killed engine leaves behind
    builds: tuple[BuildStep, ...] = ()
    container: Container | None = None
    chat: bool = True  #: model and server take messages, not only text to continue
    key: KeyFile | None = None  #: where a server that makes its own keys writes them
    model_repository: str | None = None  #: the folder below `run_dir` that is a model repository (Triton)
    model_archive: str | None = None  #: the archive that a build step makes (TorchServe)
    memory: Memory | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        spec: ServeSpec,
        *,
        argv: Sequence[str],
        endpoints: Endpoints,
        probes: Probes,
        env: Mapping[str, str] | None = None,
        inherit: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        links: Mapping[str, str] | None = None,
        writes: Sequence[str] = (),
        leftovers: Sequence[str] = (),
        chat: bool = True,
        shm_size: str | None = None,
        reads: Sequence[str] = (),
        builds: Sequence[BuildStep] | None = None,
        key: KeyFile | None = None,
        model_repository: str | None = None,
        model_archive: str | None = None,
    ) -> LaunchPlan:
        """Return the plan of `spec`: the engine's decisions, and the rest as the spec has it.

        The user's variables win over the engine's, which win over the device's. `inherit` names variables of the user's
        shell that the engine needs as it is configured; a container has none. `reads` are files and folders of the
        user's, besides the model, that the program opens.
        """
        steps = spec.builds if builds is None else tuple(builds)
        inside = [f"{spec.run_dir}/{model_repository}"] if model_repository else []
        container = _container(spec, [*inside, *_served(spec, steps), *reads], writes, shm_size)
        return cls(
            name=spec.name,
            engine=spec.engine,
            device=spec.device,
            model=spec.model,
            runtime=spec.runtime,
            environment=spec.environment,
            argv=tuple(argv),
            endpoints=endpoints,
            probes=probes,
            run_dir=spec.run_dir,
            env={**spec.device.env, **(env or {}), **spec.env},
            inherit=() if spec.container else (*inherit, *spec.inherit),
            files=files or {},
            links=links or {},
            writes=tuple(writes),
            leftovers=_outside(container, leftovers),
            builds=steps,
            container=container,
            chat=chat and spec.model.chat,
            key=key,
            model_repository=model_repository,
            model_archive=model_archive,
            memory=spec.memory,
            notes=spec.notes,
        )


def _served(spec: ServeSpec, steps: Sequence[BuildStep]) -> list[str]:
    """Return the paths of the model that the program reads: its own, and those made from it for this engine."""
    made = [step.output for step in steps if step not in spec.builds]
    library = spec.library.get("library", "")
    return [spec.model.path, *made, *([library] if library.startswith("/") else [])]


def _container(spec: ServeSpec, reads: Sequence[str], writes: Sequence[str], shm_size: str | None) -> Container | None:
    """Return the container of `spec` with the engine's ports, and with mounts of what it reads at the same place."""
    if spec.container is None:
        return None
    http, *others = spec.ports
    return replace(
        spec.container,
        ports=(Port(spec.published, http), *(Port(LOOPBACK_ADDRESS, number) for number in others)),
        mounts=(
            Mount(spec.run_dir, spec.run_dir, read_only=spec.container.read_only),
            *(Mount(path, path) for path in dict.fromkeys(reads)),
            # Each has a mount of its own, which nobody inside can replace by a link.
            *(Mount(path, path, read_only=False) for path in (f"{spec.run_dir}/{name}" for name in writes)),
            Mount(spec.container.cache, spec.container.cache, read_only=False),
            *spec.container.mounts,
        ),
        # A container with the machine's IPC has the machine's /dev/shm.
        shm_size=None if spec.container.ipc == "host" else spec.container.shm_size or shm_size,
    )


def _outside(container: Container | None, leftovers: Sequence[str]) -> tuple[str, ...]:
    """Return those of `leftovers` that can be on this machine.

    A container takes its own with it, unless it shares the machine's /dev/shm.
    """
    if container is None:
        return tuple(leftovers)
    if container.ipc != "host":
        return ()
    return tuple(pattern for pattern in leftovers if pattern.startswith("/dev/shm/"))  # noqa: S108  (the kernel's)
