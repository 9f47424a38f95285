"""A `LaunchPlan` as JSON: whole for a supervisor, or public with its secrets masked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from engines.base import BuildStep, Container, Device, Environment, HttpCheck, LaunchPlan, Model, Probes
from launcher.masking import mask_argv, mask_env, mask_url


def public(plan: LaunchPlan) -> dict[str, Any]:
    """Return what `rmlaunch plan --json` prints: plain JSON types, secrets masked."""
    device, model, ends = plan.device, plan.model, plan.endpoints
    return {
        "name": plan.name,
        "engine": plan.engine,
        "device": {
            "kind": device.kind,
            "ids": list(device.ids),
            "count": device.count,
            "product": device.product,
            "assumed": device.assumed,
            "simulated": device.simulated,
        },
        "model": {"id": model.id, "source": model.source, "format": model.format, "path": model.path},
        "runtime": plan.runtime,
        "environment": _environment(plan.environment),
        "builds": [_build(step) for step in plan.builds],
        "files": dict(plan.files),
        "links": dict(plan.links),
        "argv": list(mask_argv(plan.argv)),
        "env": mask_env(plan.env),
        "inherit": list(plan.inherit),
        "endpoints": {
            "http": ends.http.url,
            "grpc": str(ends.grpc) if ends.grpc else None,
            "metrics": ends.metrics,
        },
        "probes": _probes(plan.probes),
        "container": _container(plan.container) if plan.container else None,
        "memory": {**dataclasses.asdict(plan.memory), "needed": plan.memory.needed} if plan.memory else None,
    }


#: the type at each dotted path of a public plan
_KINDS: Mapping[str, type] = {
    "": LaunchPlan, "device": Device, "model": Model, "environment": Environment, "container": Container,
    **dict.fromkeys(("probes.startup", "probes.readiness", "probes.liveness"), HttpCheck),
}  # fmt: skip


def is_known(path: str) -> bool:
    """Return whether a public plan of this release may have a key at `path` (`container.read_only`)."""
    place, _, key = path.rpartition(".")
    return place not in _KINDS or key in {field.name for field in dataclasses.fields(_KINDS[place])}


def is_default(path: str, value: object) -> bool:
    """Return whether `value` is the default at the dotted `path` of a public plan (`container.read_only`).

    A record of an older version lacks the keys that were added since: for them, it means the default.
    """
    place, _, key = path.rpartition(".")
    fields = dataclasses.fields(_KINDS[place]) if place in _KINDS else ()
    for field in fields:
        if field.name == key and field.default is not dataclasses.MISSING:
            return bool(json.loads(json.dumps(field.default)) == value)
        if field.name == key and field.default_factory is not dataclasses.MISSING:
            return bool(field.default_factory() == value)
    return False


def whole(plan: LaunchPlan) -> dict[str, Any]:
    """Return the whole plan, secrets included: for a pipe between our own processes, never for a file or a screen."""
    return dataclasses.asdict(plan)


def _environment(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "path": environment.path,
        "managed": environment.managed,
        "python": environment.python,
        "requirements": [mask_url(item) for item in environment.requirements],
        "overrides": [mask_url(item) for item in environment.overrides],
        "indexes": [mask_url(index) for index in environment.indexes],
    }


def _container(container: Container) -> dict[str, Any]:
    data = {key: list(value) if isinstance(value, tuple) else value for key, value in
            dataclasses.asdict(container).items()} | {"env": mask_env(container.env)}  # fmt: skip
    if (build := container.build) is not None:
        packages = _environment(build.environment)
        data["build"] = {"base": build.base, "environment": packages, "libraries": build.libraries,
                         "dockerfile": build.dockerfile}  # fmt: skip
    return data


def _build(step: BuildStep) -> dict[str, Any]:
    return {
        "name": step.name,
        "argv": list(mask_argv(step.argv)),
        "env": mask_env(step.env),
        "files": dict(step.files),
        "output": step.output,
        "environment": _environment(step.environment),
    }


def _probes(probes: Probes) -> dict[str, dict[str, Any]]:
    settings = probes.settings
    return {
        "startup": {**_check(probes.startup), "timeout_s": settings.startup_timeout_s},
        "readiness": _check(probes.readiness),
        "liveness": {
            **_check(probes.liveness),
            "period_s": settings.liveness_period_s,
            "timeout_s": settings.liveness_timeout_s,
            "failures": settings.liveness_failures,
        },
    }


def _check(check: HttpCheck) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": check.path, "method": check.method, "body": check.body, "expect": check.expect}
    if check.among is not None:
        shown["among"] = check.among
    if check.endpoint:
        shown["endpoint"] = check.endpoint.url
    if check.key:
        shown["key_file"] = f"{check.key.path}: {check.key.key}"
    return shown
