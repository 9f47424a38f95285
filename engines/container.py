"""A plan's container as plain data, from which a runtime makes it and `rmlaunch plan` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.environment import Environment

#: labels that say whose a container is: the deployment's name, and its folder, which no other deployment has
LABEL_NAME, LABEL_FOLDER = "rmlaunch.deployment", "rmlaunch.folder"

#: the folder for temporary files in every container; gone with the container
TEMPORARY = "/tmp"  # noqa: S108


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """The settings that a container needs to use some devices.

    `cdi` and `nodes` are two ways to the same devices: if the runtime knows the CDI names, it needs no nodes and no
    mounts. `env` has the variables that differ inside, where only these devices are seen.
    """

    nodes: tuple[str, ...] = ()  #: "/dev/rbln0", or "/dev/rsd1:/dev/rsd0" where it has another name inside
    cdi: tuple[str, ...] = ()  #: "rebellions.ai/npu=0"
    gpu_ids: tuple[str, ...] = ()  #: ids in a device request with the capability `gpu` (Docker's --gpus)
    mounts: tuple[str, ...] = ()  #: "/host/path:/inside:ro"
    capabilities: tuple[str, ...] = ()  #: Linux capabilities to add
    security: tuple[str, ...] = ()  #: "seccomp=unconfined"
    groups: tuple[str, ...] = ()  #: groups to add the user to
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
    """The recipe of an image that rmlaunch makes: an environment of this machine, put into a base image."""

    base: str
    environment: Environment
    libraries: str  #: libraries that the base must have, as the Dockerfile reads them: "libgomp.so.1:libgomp1"
    dockerfile: str


@dataclass(frozen=True, slots=True)
class Container:
    """Everything that a container is made from, besides the plan's argv and run folder."""

    name: str
    image: str  #: with a tag or a digest
    daemon: str  #: the daemon's address: unix:///var/run/docker.sock
    build: ImageBuild | None = None  #: None if the image is pulled
    pull: str = "missing"  #: missing, always or never
    network: str = "bridge"
    user: str = ""  #: uid:gid; empty is the image's
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    cache: str = ""  #: a folder that engines keep compiled code in, from start to start; made where it is missing
    env: Mapping[str, str] = field(default_factory=dict)  #: variables besides the plan's
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
    shm_size: str | None = None  #: size of /dev/shm: "1g"; None is Docker's own 64 MB
    memory: str | None = None  #: "16g", and no swap beyond it
    cpus: float | None = None
    pids: int | None = None  #: processes and threads; None is no limit
    read_only: bool = False  #: the image's files and the run folder are read-only, and /tmp is in memory
    labels: Mapping[str, str] = field(default_factory=dict)
    log_bytes: int = 1 << 25  #: size of Docker's own copy of the log; an older part of the same size is kept too
