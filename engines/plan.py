"""What goes into a plan and what comes out of it, as plain data: `ServeSpec` → `LaunchPlan`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engines.container import Container, Mount, Port
from engines.endpoint import LOOPBACK_ADDRESS, Endpoint, Endpoints, KeyFile
from engines.environment import Environment

#: in the words of a build step's `argv`: the folder to fill, and the folder that holds the step's `files`
OUTPUT, FILES = "{output}", "{files}"

# ---------------------------------------------------------------- what to serve: the engine's whole view of the config


@dataclass(frozen=True, slots=True)
class Device:
    """The devices of one deployment, as resolved; `assumed` marks hardware that was described, not found."""

    kind: str
    ids: tuple[int, ...] = (0,)
    product: str | None = None
    memory_bytes: int | None = None  #: of one device
    assumed: bool = False
    simulated: bool = False  #: computed by a program on the host's processor
    env: Mapping[str, str] = field(default_factory=dict)  #: what makes only `ids` visible to the engine

    @property
    def count(self) -> int:
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
    batch_size: int | None = None  #: that the artifact was compiled for
    identity: str = ""  #: of the weights; what is made from them is keyed by it
    inputs: tuple[TensorSpec, ...] = ()  #: of a tensor model, in the order of its own arguments
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What an engine does with the memory of its devices, as far as that can be said before it has seen the model.

    The defaults are those of an engine that has one copy of the weights on one device.
    """

    context_length: int  #: tokens of one sequence
    context_key: str = "model.context_length"  #: what sets it
    sequences: int = 1  #: of that length that there must be room for at the same time
    weights_dtype: str = "bfloat16"  #: what weights are cast to that are not quantized
    as_stored: bool = False  #: weights stay as they are in the file (GGUF)
    kv_dtype: str = "bfloat16"
    kv_pool_bytes: int | None = None  #: of a KV cache that is this large, however long the sequences are
    kv_pool_key: str = ""  #: what sets it
    copies: int = 1  #: of the weights on a device
    spread: str = ""  #: over several devices: by "heads" (tensor parallelism), by "layers", "any" number; "" is not
    replicas: int = 1  #: that the devices are shared out to, each with all of the weights
    stages: int = 1  #: of layers; the devices of each share its heads
    nodes: int = 1  #: machines with these devices
    usable: float = 1.0  #: the share of a device's memory that the engine takes at most
    usable_key: str = ""  #: what sets it
    reserved_bytes: int = 0  #: of each device, which no program gets
    overhead_bytes: int = 0  #: of programs and libraries, on each device
    link_bytes: int = 0  #: more on each device, where several work together
    tokens_at_once: int = 512  #: of prompts, in one step
    logits_at_once: int = 1  #: positions whose logits are there at the same time


@dataclass(frozen=True, slots=True)
class Memory:
    """The estimate for one device, in bytes."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int  #: programs and libraries
    usable: int  #: what the engine may have of the device

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.overhead


@dataclass(frozen=True, slots=True)
class BuildProfile:
    """How an artifact is made: with the weights, everything that it depends on."""

    target: str  #: what it runs on: a product, a kind of device, or `any`
    compiler: str
    compiler_version: str  #: its own word, or the pinned packages that it comes in; empty where neither can be had
    flags: Mapping[str, Any] = field(default_factory=dict)
    interface: str = ""  #: the format of the artifact, which is what an engine reads

    def place(self, folder: str, model_id: str, identity: str) -> str:
        """The artifact of these weights: one path below `folder` for each profile and each `identity` of weights."""
        import hashlib  # not at the top: a supervisor's start would wait 2 ms for OpenSSL

        what = [identity, self.target, self.compiler, self.compiler_version, dict(self.flags), self.interface]
        key = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]
        return f"{folder}/{model_id}-{self.interface}-{key}"


@dataclass(frozen=True, slots=True)
class BuildStep:
    """A command that makes one artifact; it fills the folder that stands for `OUTPUT` in `argv`.

    That is a temporary folder, which is renamed to `output` when the command has succeeded, so that a half-made
    artifact is never used. `output` names all that the artifact depends on: where it exists, nothing is run.
    """

    name: str
    argv: tuple[str, ...]
    output: str
    environment: Environment
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  #: name → text, below the folder that stands for `FILES`
    made: str = ""  #: the file below `output` that is the model; empty where the whole folder is
    model_id: str = ""
    profile: BuildProfile | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)  #: exit code → what the command means by it

    @property
    def model_path(self) -> str:
        """What the next step, or the engine, reads."""
        return f"{self.output}/{self.made}" if self.made else self.output


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """What to serve and where: everything that `Engine.plan` may look at."""

    name: str
    engine: str
    device: Device
    model: Model
    runtime: str
    environment: Environment  #: as the engine's program finds it, in a container too
    bind: str  #: the address that the server listens on
    ports: tuple[int, ...]  #: as many as the engine's `ports`
    run_dir: str  #: where the plan's files are written
    artifacts: str = "/artifacts"  #: the folder of everything that build steps make
    options: Mapping[str, Any] = field(default_factory=dict)  #: the engine's own config keys
    args: Mapping[str, Any] = field(default_factory=dict)  #: flags handed to the engine's program
    env: Mapping[str, str] = field(default_factory=dict)  #: set by the user for the engine's program
    inherit: tuple[str, ...] = ()  #: variables of the user's own that it gets besides: names, or beginnings with a *
    templates: Mapping[str, str] = field(default_factory=dict)  #: file name → text: templates/<engine>/ and models/
    builds: tuple[BuildStep, ...] = ()
    #: the C library that runs the model, as templates/models/native.py reads it; empty where the engine runs it itself
    library: Mapping[str, Any] = field(default_factory=dict)
    container: Container | None = None  #: that the program runs in; the plan adds what the engine needs of it
    published: str = ""  #: the address of this machine at which a container's server is reached
    tools: Environment | None = None  #: on this machine, for build steps of the engine; None is `environment`
    program: str | None = None  #: the user's own server binary
    api_key: str | None = None
    stop_grace_s: float = 10.0  #: from TERM to KILL
    probes: ProbeSettings = field(default_factory=lambda: ProbeSettings())
    memory: Memory | None = None  #: what it will take of each device; None is not known
    notes: tuple[str, ...] = field(default=(), compare=False)  #: what a user should know of the choices made

    @property
    def connect_host(self) -> str:
        """The address that a client on this machine uses; a wildcard bind is reached over loopback."""
        host = self.published or self.bind
        return {"0.0.0.0": LOOPBACK_ADDRESS, "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)

    @property
    def private_bind(self) -> str:
        """What a port listens on that only this machine may reach; a container's is published on loopback alone."""
        return self.bind if self.container else LOOPBACK_ADDRESS

    @property
    def builder(self) -> Environment:
        """Where build steps run that need the engine's packages."""
        return self.tools or self.environment


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How long to wait; all in seconds."""

    startup_timeout_s: float = 600.0
    liveness_period_s: float = 10.0
    liveness_timeout_s: float = 5.0
    liveness_failures: int = 3
    stall_timeout_s: float = 300.0  #: of a start that shows no sign of life
    busy_timeout_s: float = 300.0  #: that a server is believed to be busy which computes and answers nothing


# ----------------------------------------------------------------------------- what will be done: plain data, JSON-able


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """One HTTP request; it passes on status 200 with `expect`, if given, in the JSON body.

    `expect` is a dotted path, such as `choices.0.text`, in which `*` goes through a whole list. What it leads to must
    be there, and not 0 or empty; with `among` given, one of the values that it leads to must be that.
    """

    path: str
    method: str = "GET"
    body: Mapping[str, Any] | None = None
    expect: str | None = None
    among: str | None = None
    endpoint: Endpoint | None = None  #: where it is not `Endpoints.http`
    key: KeyFile | None = None  #: where it is not the plan's
    final: bool = False  #: a server that answers otherwise will not change its mind, so waiting for it is pointless


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
    writes: tuple[str, ...] = ()  #: folders below `run_dir` that the program writes to, and that are made for it
    leftovers: tuple[str, ...] = ()  #: glob patterns of files outside `run_dir` that a killed engine leaves behind
    builds: tuple[BuildStep, ...] = ()
    container: Container | None = None
    chat: bool = True  #: model and server take messages, not only text to continue
    key: KeyFile | None = None  #: of a server that makes its own keys
    model_repository: str | None = None  #: the folder below `run_dir` that is one (Triton)
    model_archive: str | None = None  #: the output of the build step that makes one (TorchServe)
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
        """The plan of `spec`: what the engine decided, and the rest as the spec has it.

        The user's variables win over the engine's, which win over the device's. `inherit` names those of their shell
        that the engine needs as it is configured; a container has none. `reads` are files and folders of the user's,
        besides the model, that the program opens.
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
    """What the program reads of the model: itself, and what is made from it for this engine."""
    made = [step.output for step in steps if step not in spec.builds]
    library = spec.library.get("library", "")
    return [spec.model.path, *made, *([library] if library.startswith("/") else [])]


def _container(spec: ServeSpec, reads: Sequence[str], writes: Sequence[str], shm_size: str | None) -> Container | None:
    """The container of `spec` with what the engine needs of it: its ports, and what it reads at the same place."""
    if spec.container is None:
        return None
    http, *others = spec.ports
    return replace(
        spec.container,
        ports=(Port(spec.published, http), *(Port(LOOPBACK_ADDRESS, number) for number in others)),
        mounts=(
            Mount(spec.run_dir, spec.run_dir, read_only=spec.container.read_only),
            *(Mount(path, path) for path in dict.fromkeys(reads)),
            # A mount of its own, which nobody inside can put a link in place of.
            *(Mount(path, path, read_only=False) for path in (f"{spec.run_dir}/{name}" for name in writes)),
            Mount(spec.container.cache, spec.container.cache, read_only=False),
            *spec.container.mounts,
        ),
        # With the machine's IPC it has the machine's /dev/shm.
        shm_size=None if spec.container.ipc == "host" else spec.container.shm_size or shm_size,
    )


def _outside(container: Container | None, leftovers: Sequence[str]) -> tuple[str, ...]:
    """Those that can be on this machine: a container takes its own with it, unless it shares the machine's /dev/shm."""
    if container is None:
        return tuple(leftovers)
    if container.ipc != "host":
        return ()
    return tuple(pattern for pattern in leftovers if pattern.startswith("/dev/shm/"))  # noqa: S108  (the kernel's)
