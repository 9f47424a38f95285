"""Describe the container of a launch: its image, and everything that the engine itself does not decide."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from engines.base import (
    ConfigError,
    Container,
    ContainerSettings,
    Engine,
    Environment,
    ImageBuild,
    Mount,
    PlanError,
)
from engines.container import LABEL_FOLDER, LABEL_NAME, TEMPORARY
from launcher.config.schema import ContainerConf, EngineConf, LaunchConfig, LayoutConf
from launcher.inheritance import MARKER
from launcher.paths import cache_root, shipped
from launcher.planning.machine import Machine
from launcher.runtimes import docker_daemon

#: folder of the packages in images of ours
ENVIRONMENT = "/opt/rmlaunch/environment"

#: kinds of devices whose built images are known to run read-only
_TRIED = ("cpu", "gpu")

_SIZE = re.compile(r"[1-9]\d*[bkmg]?", re.IGNORECASE)

#: folders of CDI specifications, by CDI's own document
_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")


def check(config: LaunchConfig, machine: Machine) -> None:
    """Raise `PlanError` for settings that a container cannot have; for a launch, `AwayError` if no daemon answers."""
    if machine.launches:
        machine.docker()
    if config.engine.environment != "managed":
        raise PlanError(
            f"engine.environment={config.engine.environment!r} is on this machine, and runtime={config.runtime.name} "
            "takes packages from its image; leave it out, or use runtime=process"
        )
    assert isinstance(config.runtime, ContainerConf)
    _check_sizes(config.runtime)
    if (network := config.runtime.network).partition(":")[0] in ("host", "none", "container"):
        raise PlanError(
            f"runtime.network={network!r}: the engine's ports are published on loopback from a network of its own; "
            "use bridge, or one that `docker network create` has made"
        )
    if ":" in config.host:
        raise PlanError(
            f"host={config.host!r}: containers' ports are published on addresses of IPv4; use host=127.0.0.1"
        )


def _check_sizes(conf: ContainerConf) -> None:
    for key, size in (("memory", conf.memory), ("shm_size", conf.shm_size)):
        if size is not None and not _SIZE.fullmatch(size):
            raise ConfigError(f"runtime.{key}={size!r} is not understood; write 512m or 16g")
    if conf.cpus is not None and conf.cpus <= 0:
        raise ConfigError(f"runtime.cpus={conf.cpus:g} must be more than 0")
    if conf.pids is not None and conf.pids < 1:
        raise ConfigError(f"runtime.pids={conf.pids} must be at least 1; null is no limit")


def layout(engine: EngineConf, key: str) -> LayoutConf:
    """Return the places of things in the image that serves `key`."""
    return engine.layouts.get(key) or LayoutConf()


def environment(engine: EngineConf, conf: ContainerConf, key: str, here: Environment) -> Environment:
    """Return the packages as the program finds them in the container; `here` are those on this machine."""
    told = layout(engine, key)
    return dataclasses.replace(
        here,
        path=conf.environment or told.environment or ENVIRONMENT,
        python=told.python or here.python,
        library_dir="",  # the image's loader knows it
    )


def describe(
    config: LaunchConfig,
    engine: Engine,
    key: str,
    here: Environment,
    settings: ContainerSettings,
    name: str,
    run_dir: str,
) -> Container:
    """Return the container of the deployment `name`, without its ports and the files that the engine reads.

    `here` is the environment that an image is built from; `settings` are the needs of the devices.
    """
    conf = config.runtime
    assert isinstance(conf, ContainerConf)
    image, build = _image(config.engine, engine, conf, key, here)
    by_name = _by_name(conf, settings)
    by_request = bool(settings.gpu_ids) and not by_name
    cache = str(cache_root() / "engines" / f"{engine.name}-{key}")
    return Container(
        # Docker's names are the whole machine's, and ours those of one state folder.
        name=f"rmlaunch-{name}-{sha256(run_dir.encode()).hexdigest()[:6]}",
        image=image,
        daemon=docker_daemon.address(),
        build=build,
        pull=_pull(conf),
        network=conf.network,
        user=conf.user or f"{os.getuid()}:{os.getgid()}",
        mounts=(
            *_given(conf),
            *(Mount(*_parts(text)) for text in settings.mounts if not by_name and not by_request),
        ),
        cache=cache,
        env={
            # A user that the image does not know has no home and no name. Compiled code is kept from start to start.
            "HOME": TEMPORARY,
            "USER": "rmlaunch",
            "TMPDIR": TEMPORARY,
            "XDG_CACHE_HOME": cache,
            MARKER: run_dir,
        },
        nodes=() if by_name or by_request else settings.nodes,
        cdi=settings.cdi if by_name else (),
        gpu_ids=settings.gpu_ids if by_request else (),
        cap_add=settings.capabilities,
        security=("no-new-privileges:true", *settings.security),
        groups=(*settings.groups, *(_own_groups() if conf.user is None else ())),
        ulimits=settings.ulimits,
        sysctls=settings.sysctls,
        ipc=settings.ipc,
        shm_size=conf.shm_size,
        memory=conf.memory,
        cpus=conf.cpus,
        pids=conf.pids,
        read_only=bool(build) and config.device.kind in _TRIED if conf.read_only is None else conf.read_only,
        labels={LABEL_NAME: name, LABEL_FOLDER: run_dir},
        log_bytes=config.supervise.log_mib << 20,
    )


def _own_groups() -> Iterator[str]:
    """Yield the ids of our user's other groups: files readable by them stay readable in the container."""
    return (str(group) for group in sorted(set(os.getgroups()) - {os.getgid()}))


def _image(
    conf: EngineConf, engine: Engine, runtime: ContainerConf, key: str, here: Environment
) -> tuple[str, ImageBuild | None]:
    """Return the image's name, and how to build it; None if it is pulled."""
    if named := runtime.image or conf.images.get(key):
        return named, None
    build = _build(conf, engine, runtime, key, here)
    return _tag(build), build


def _build(conf: EngineConf, engine: Engine, runtime: ContainerConf, key: str, here: Environment) -> ImageBuild:
    if key not in conf.environments:
        raise PlanError(
            f"engine={engine.name} names neither an image nor packages for {key}; set runtime.image to one of yours"
        )
    base = runtime.base or layout(conf, key).base or runtime.bases.get(here.python)
    if not base:
        raise PlanError(f"runtime.bases has no base image for Python {here.python}; set runtime.base")
    pairs = (f"{library}:{package}" for library, package in engine.system_libraries(key).items())
    libraries = " ".join(pairs).format(python=here.python)
    return ImageBuild(base, here, libraries, (shipped("templates") / "docker/Dockerfile").read_text())


def _tag(build: ImageBuild) -> str:
    """Return the image's name, keyed by all that is in it, as the environment's folder is by its packages."""
    here = build.environment
    what = (Path(here.path).name, build.base, build.dockerfile, build.libraries, platform.machine())
    return f"rmlaunch/{here.name}:{sha256(repr(what).encode()).hexdigest()[:12]}"


def _pull(conf: ContainerConf) -> str:
    if conf.pull not in ("missing", "always", "never"):
        raise ConfigError(f"runtime.pull={conf.pull!r} is not known; use missing, always or never")
    return conf.pull


def _by_name(conf: ContainerConf, settings: ContainerSettings) -> bool:
    """Return whether the devices are asked for by their CDI names."""
    if conf.devices not in ("auto", "cdi", "nodes"):
        raise ConfigError(f"runtime.devices={conf.devices!r} is not known; use auto, cdi or nodes")
    if conf.devices == "cdi" and not settings.cdi:
        raise PlanError("runtime.devices=cdi, but no CDI names of these devices are known; use runtime.devices=nodes")
    if conf.devices != "auto" or not settings.cdi or settings.gpu_ids:
        return conf.devices == "cdi"
    return settings.cdi[0].partition("=")[0] in _cdi_kinds()


def _cdi_kinds() -> Mapping[str, Path]:
    """Return the kinds of devices that CDI specifications of this machine have: "rebellions.ai/npu" → the file."""
    import yaml

    found = {}
    for file in (file for folder in _CDI_FOLDERS for file in sorted(Path(folder).glob("*"))):
        if file.suffix in (".json", ".yaml", ".yml"):
            try:
                data = yaml.safe_load(file.read_text())  # JSON is YAML
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if isinstance(data, dict) and "kind" in data:
                found[str(data["kind"])] = file
    return found


def _given(conf: ContainerConf) -> Iterator[Mount]:
    for text in conf.mounts:
        source, target, read_only = _parts(text)
        if not (source.startswith("/") and target.startswith("/")):
            raise ConfigError(f"runtime.mounts: {text!r} is not understood; write /here:/inside or /here:/inside:ro")
        yield Mount(source, target, read_only)


def _parts(text: str) -> tuple[str, str, bool]:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    return source, target, mode == "ro"
