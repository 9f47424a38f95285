"""The contract between the launcher and one serving engine.

An engine module is a translator. `Engine.plan` turns a resolved `ServeSpec` into a `LaunchPlan`, which is plain
data; the launcher acts on it. `Engine.infer` speaks the protocol of a server that is already running. Nothing in
this file touches the machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class RmLaunchError(Exception):
    """Root of every failure that a user can cause or meet; it prints as one message, never as a traceback.

    RmLaunchError
    ├── RequestError         the request is wrong; exit code 2
    │   ├── ConfigError      a key, an option or a value
    │   ├── PlanError        the combination asks for something that the engine cannot do
    │   └── ResourceError    a device, port or name that this machine does not have free
    ├── PrepareError         an environment, a download or a build failed; exit code 1
    ├── DeploymentError      the engine's program failed; exit code 1
    │   ├── ExitedBeforeReady
    │   ├── ReadyTimeout
    │   └── StoppedBeforeReady    as asked; exit code 130, the shell's for a Ctrl-C
    └── InferenceError       a running server refused or failed a request, in the server's own words; exit code 1
    """

    exit_code: ClassVar[int] = 1


class RequestError(RmLaunchError):
    """The request is wrong, and nothing was started."""

    exit_code = 2


class ConfigError(RequestError):
    """A key, an option or a value in the config is wrong."""


class PlanError(RequestError):
    """The spec asks for something that this engine cannot do; the message names the key to change."""


class ResourceError(RequestError):
    """A device, a port or a name that is not there or not free."""


class PrepareError(RmLaunchError):
    """An environment, a download or a build step failed."""


class DeploymentError(RmLaunchError):
    """The engine's program could not be kept serving."""


class ExitedBeforeReady(DeploymentError):
    """The engine's program ended before it served its first request."""


class ReadyTimeout(DeploymentError):
    """The engine's program ran but did not serve a request in time."""


class StoppedBeforeReady(DeploymentError):
    """Somebody asked it to stop before it had done what it was started for."""

    exit_code = 130


class InferenceError(RmLaunchError):
    """A server refused or failed a request; `status` is its HTTP or gRPC code where there is one."""

    def __init__(self, message: str, status: int | str | None = None) -> None:
        super().__init__(message)
        self.status = status


# ---------------------------------------------------------------- what to serve: the engine's whole view of the config


@dataclass(frozen=True, slots=True)
class Device:
    """The devices of one deployment, as resolved; `assumed` marks hardware that was described, not found."""

    kind: str
    ids: tuple[int, ...] = (0,)
    product: str | None = None
    memory_bytes: int | None = None  #: of one device
    assumed: bool = False
    env: Mapping[str, str] = field(default_factory=dict)  #: what makes only `ids` visible to the engine
    nodes: tuple[str, ...] = ()  #: device nodes that a container needs

    @property
    def count(self) -> int:
        return len(self.ids)


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


@dataclass(frozen=True, slots=True)
class Environment:
    """An isolated set of packages; `path` is the folder of the Python environment that holds it."""

    name: str
    path: str
    python: str  #: "3.11"
    managed: bool = True  #: False where the user owns it: it is used as it is
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    library_dir: str = ""  #: where the shared library of its Python lies, for programs that embed it

    @property
    def bin(self) -> str:
        return f"{self.path}/bin"

    @property
    def site_packages(self) -> str:
        return f"{self.path}/lib/python{self.python}/site-packages"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to; `host` is never a wildcard."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}"


@dataclass(frozen=True, slots=True)
class Endpoints:
    http: Endpoint
    grpc: Endpoint | None = None
    metrics: str | None = None  #: a URL


@dataclass(frozen=True, slots=True)
class BuildStep:
    """A command that makes one artifact; it writes to the folder that replaces `{output}` in `argv`.

    The launcher runs it in a temporary folder and renames the result to `output`, so that a half-made artifact is
    never used.
    """

    name: str
    argv: tuple[str, ...]
    output: str
    environment: Environment
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """What to serve and where: everything that `Engine.plan` may look at."""

    name: str
    engine: str
    device: Device
    model: Model
    runtime: str
    environment: Environment
    bind: str  #: the address that the server listens on
    ports: tuple[int, ...]  #: as many as the engine's `ports`
    run_dir: str  #: where the plan's files are written
    options: Mapping[str, Any] = field(default_factory=dict)  #: the engine's own config keys
    args: Mapping[str, Any] = field(default_factory=dict)  #: flags handed to the engine's program
    env: Mapping[str, str] = field(default_factory=dict)  #: set by the user for the engine's program
    templates: Mapping[str, str] = field(default_factory=dict)  #: file name → text, from templates/<engine>/
    builds: tuple[BuildStep, ...] = ()
    image: str | None = None
    program: str | None = None  #: the user's own server binary
    api_key: str | None = None
    stop_grace_s: float = 10.0  #: from TERM to KILL
    probes: ProbeSettings = field(default_factory=lambda: ProbeSettings())

    @property
    def connect_host(self) -> str:
        """The address that a client on this machine uses; a wildcard bind is reached over loopback."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind)  # noqa: S104  (compared, not bound)


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How long to wait; all in seconds."""

    startup_timeout_s: float = 600.0
    liveness_period_s: float = 10.0
    liveness_timeout_s: float = 5.0
    liveness_failures: int = 3


# ----------------------------------------------------------------------------- what will be done: plain data, JSON-able


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """One HTTP request to `Endpoints.http`; it passes on status 200 with `expect`, if given, in the JSON body.

    `expect` is a dotted path, such as `choices.0.text`; what it leads to must be there.
    """

    path: str
    method: str = "GET"
    body: Mapping[str, Any] | None = None
    expect: str | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """Kubernetes' three probes: `startup` is the engine's own word, `readiness` is a real request."""

    startup: HttpCheck
    readiness: HttpCheck
    liveness: HttpCheck
    settings: ProbeSettings


@dataclass(frozen=True, slots=True)
class Container:
    """What a container of this plan needs, whichever runtime is chosen."""

    image: str
    devices: tuple[str, ...] = ()
    shm_size: str | None = None


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
    files: Mapping[str, str] = field(default_factory=dict)  #: path below `run_dir` → text
    links: Mapping[str, str] = field(default_factory=dict)  #: path below `run_dir` → what it points to
    leftovers: tuple[str, ...] = ()  #: glob patterns of files outside `run_dir` that a killed engine leaves behind
    builds: tuple[BuildStep, ...] = ()
    container: Container | None = None
    chat: bool = True  #: model and server take messages, not only text to continue

    @classmethod
    def of(
        cls,
        spec: ServeSpec,
        *,
        argv: Sequence[str],
        endpoints: Endpoints,
        probes: Probes,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        links: Mapping[str, str] | None = None,
        leftovers: Sequence[str] = (),
        chat: bool = True,
        shm_size: str | None = None,
    ) -> LaunchPlan:
        """The plan of `spec`: what the engine decided, and the rest as the spec has it.

        The user's variables win over the engine's, which win over the device's.
        """
        container = Container(spec.image, spec.device.nodes, shm_size) if spec.image else None
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
            files=files or {},
            links=links or {},
            leftovers=tuple(leftovers),
            builds=spec.builds,
            container=container,
            chat=chat and spec.model.chat,
        )


# ------------------------------------------------------------------------------------------- asking a running server


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is decoded; the names and meanings are the OpenAI and vLLM ones. `None` leaves it to the server."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What is set, under the names that OpenAI's and Triton's servers share."""
        given: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        optional = {"top_p": self.top_p, "top_k": self.top_k, "seed": self.seed, "stop": list(self.stop) or None}
        return given | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Text to continue (`prompt`) or a conversation to answer (`messages`); exactly one of them."""

    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    usage: bool = False  #: say why the text ended and how many tokens it took


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    texts: tuple[str, ...]


Request = GenerateRequest | EmbedRequest


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text; counts are in tokens, and the last chunk has the totals where the server tells."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of one text, in the order of the request."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, as a client sees it."""

    endpoints: Endpoints
    model_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as data: checked while planning, so that nothing fails half-way."""

    formats: Mapping[str, tuple[str, ...]]  #: device kind → model formats, the preferred one first
    tasks: frozenset[str] = frozenset({"generate"})
    api_key: bool = False  #: the server itself can demand a key

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.formats)


class Engine(ABC):
    """One serving program. A plugin writes `plan` and `infer`; an instance belongs to one deployment's client."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    ports: ClassVar[tuple[str, ...]] = ("http",)  #: the names of the ports that the server listens on

    @abstractmethod
    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Return the plan for `spec`.

        Pure: no files, sockets, subprocesses, clock or `os.environ`. Equal specs give equal plans.
        Raises `PlanError` naming the config key to change.
        """

    @abstractmethod
    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        """Send one request to a ready server; yield text as it arrives, or one vector per text to embed.

        Blocks between items for at most `target.timeout_s`. Called from several threads at once. Closing the
        iterator early cancels the request. Raises `InferenceError` with the server's words.
        """

    def environment_key(self, kind: str, options: Mapping[str, Any]) -> str:  # noqa: ARG002
        """The key of `environments` and `images` in the engine's config; the device kind, unless options matter."""
        return kind

    def close(self) -> None:
        """Let go of connections that `infer` kept open. A second call does nothing."""
