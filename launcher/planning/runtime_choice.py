"""Decide runtime=auto: a process if the engine can run here, else a container if a daemon answers."""

from __future__ import annotations

from engines.base import Engine, ResourceError
from launcher.config.schema import LaunchConfig, options_of
from launcher.paths import cache_root
from launcher.planning import environments
from launcher.planning.machine import Machine

PROCESS, DOCKER = "process", "docker"


def choose(config: LaunchConfig, engine: Engine, machine: Machine) -> tuple[str, str]:
    """Return the runtime, and the reason for it."""
    missing = missing_here(config, engine, machine)
    if not missing:
        return PROCESS, f"runtime=auto → process ({engine.name} can run here)"
    try:
        answer = machine.docker()
    except ResourceError as exc:
        why = str(exc).partition(";")[0]
        return PROCESS, f"runtime=auto → process ({missing}, but docker cannot do it: {why})"
    return DOCKER, f"runtime=auto → docker ({missing}; {answer})"


def missing_here(config: LaunchConfig, engine: Engine, machine: Machine) -> str:
    """Return what the engine's program would lack here, in words; empty if nothing is known to be missing."""
    conf, kind = config.engine, config.device.kind
    options = options_of(conf)
    program = conf.program or engine.external_program(kind, options)
    if program:
        return "" if machine.has_program(program) else f"there is no program {program} here"
    if conf.environment != "managed" or config.device.sdk:
        return ""  # it is the user's, and as the user wants it
    key = engine.environment_key(kind, options)
    if key not in conf.environments:
        return f"no packages of {engine.name} for {key} are known"
    here = environments.describe(f"{engine.name}-{key}", "managed", conf.environments[key], cache_root())
    for pattern in engine.system_libraries(key):
        library = pattern.format(python=here.python)
        places = (library, f"{here.library_dir}/{library}") if here.library_dir else (library,)
        if not any(map(machine.has_library, places)):
            return f"{engine.name} needs {library}, which is not here"
    return ""
