"""What runtime=auto means: a process where the engine can run here, else a container where a daemon answers."""

from __future__ import annotations

import ctypes
import shutil

from engines.base import Engine
from launcher.config.schema import LaunchConfig, options_of
from launcher.paths import cache_root
from launcher.planning import environments

PROCESS, DOCKER = "process", "docker"


def choose(config: LaunchConfig, engine: Engine) -> tuple[str, str]:
    """The runtime and why."""
    missing = missing_here(config, engine)
    if not missing:
        return PROCESS, f"runtime=auto → process ({engine.name} can run here)"
    from launcher.runtimes import docker_daemon  # a launch that needs none would wait for it

    try:
        answer = docker_daemon.ping(docker_daemon.address())
    except docker_daemon.AwayError as exc:
        why = str(exc).partition(";")[0]
        return PROCESS, f"runtime=auto → process ({missing}, but docker cannot do it: {why})"
    return DOCKER, f"runtime=auto → docker ({missing}; {answer})"


def missing_here(config: LaunchConfig, engine: Engine) -> str:
    """What the engine's program would lack on this machine, in words; empty where nothing is known to be missing."""
    conf, kind = config.engine, config.device.kind
    options = options_of(conf)
    program = conf.program or engine.external_program(kind, options)
    if program:
        return "" if shutil.which(program) else f"there is no program {program} here"
    if conf.environment != "managed" or config.device.sdk:
        return ""  # it is the user's, and as the user wants it
    key = engine.environment_key(kind, options)
    if key not in conf.environments:
        return f"no packages of {engine.name} for {key} are known"
    here = environments.describe(f"{engine.name}-{key}", "managed", conf.environments[key], cache_root())
    for pattern in engine.system_libraries(key):
        library = pattern.format(python=here.python)
        if not (_loads(library) or (here.library_dir and _loads(f"{here.library_dir}/{library}"))):
            return f"{engine.name} needs {library}, which is not here"
    return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
