"""What a container of a plan needs: plain data, from which a runtime makes it and `rmlaunch plan` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.environment import Environment

#: says on every container whose it is: the deployment's name, and its folder, which no other deployment has
LABEL_NAME, LABEL_FOLDER = "rmlaunch.deployment", "rmlaunch.folder"

#: in every container; gone with it
TEMPORARY = "/tmp"  # noqa: S108


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What a container needs to use some devices.

    `cdi` and `nodes` are two ways to the same devices: where the runtime knows the CDI names, it needs no nodes and no
    mounts. `env` is what is different inside, where only these devices are seen.
    """

    nodes: tuple[str, ...] = ()  #: "/dev/rbln0", or "/dev/rsd1:/dev/rsd0" where it has another name inside
    cdi: tuple[str, ...] = ()  #: "rebellions.ai/npu=0"
    gpu_ids: tuple[str, ...] = ()  #: of a device request with the capability `gpu` (Docker's --gpus)
    mounts: tuple[str, ...] = ()  #: "/host/path:/inside:ro"
    capabilities: tuple[str, ...] = ()  #: Linux capabilities to add
    security: tuple[str, ...] = ()  #: "seccomp=unconfined"
    groups: tuple[str, ...] = ()  #: to add the user to
    ulimits: Mapping[str, int] = field(default_factory=dict)  #: soft and hard; -1 is none
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ipc: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of this machine, seen inside."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the server, and the address of this machine at which it has the same number."""

    host: str
    number: int


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """How rmlaunch makes an image: an environment of this machine, put into a base image."""

    base: str
    environment: Environment
    libraries: str  #: that the base must have, as the Dockerfile reads them: "libgomp.so.1:libgomp1"
    dockerfile: str


@dataclass(frozen=True, slots=True)
class Container:
    """Beside the plan's argv and run folder, everything that a container is made from."""

    name: str
    image: str  #: with a tag or a digest
    daemon: str  #: where it answers: unix:///var/run/docker.sock
    build: ImageBuild | None = None  #: None where the image is pulled
    pull: str = "missing"  #: missing, always or never
    network: str = "bridge"
    user: str = ""  #: uid:gid; empty is the image's
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    cache: str = ""  #: a folder that engines keep compiled code in, from start to start; made where it is missing
    env: Mapping[str, str] = field(default_factory=dict)  #: besides the plan's
    nodes: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ("ALL",)
    cap_add: tuple[str, ...] = ()
    security: tuple[str, ...] = ("no-new-privileges:true",)
    groups: tuple[str, ...] = ()
    ulimits: Mapping[str, int] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ipc: str | None = None
    shm_size: str | None = None  #: "1g", of /dev/shm; Docker's own 64 MB where None
    memory: str | None = None  #: "16g", and no swap beyond it
    cpus: float | None = None
    pids: int | None = None  #: processes and threads; None is no limit
    read_only: bool = False  #: the image's files and the run folder; /tmp is then in memory
    labels: Mapping[str, str] = field(default_factory=dict)
    log_bytes: int = 1 << 25  #: of Docker's own copy of the log, which keeps as much again of what came before
