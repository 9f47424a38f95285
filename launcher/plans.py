"""A `LaunchPlan` as JSON for a supervisor, and as something to read for a person; secrets are masked for people."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from engines.base import BuildStep, Container, Device, Environment, HttpCheck, LaunchPlan, Model, Probes
from launcher import fit
from launcher.masking import mask_argv, mask_env, mask_url


def public(plan: LaunchPlan) -> dict[str, Any]:
    """What `rmlaunch plan --json` prints."""
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


#: what stands at these places of a public plan
_KINDS: Mapping[str, type] = {
    "": LaunchPlan, "device": Device, "model": Model, "environment": Environment, "container": Container,
    **dict.fromkeys(("probes.startup", "probes.readiness", "probes.liveness"), HttpCheck),
}  # fmt: skip


def is_default(path: str, value: object) -> bool:
    """Whether `value` is what a public plan has at `path` (`container.read_only`) where nobody asked for anything.

    A record of an older version lacks what was added to plans since, and means that.
    """
    place, _, key = path.rpartition(".")
    fields = dataclasses.fields(_KINDS[place]) if place in _KINDS else ()
    for field in fields:
        if field.name == key and field.default is not dataclasses.MISSING:
            return bool(json.loads(json.dumps(field.default)) == value)
        if field.name == key and field.default_factory is not dataclasses.MISSING:
            return bool(field.default_factory() == value)
    return False


def lines(plan: LaunchPlan) -> Iterator[str]:
    """What `rmlaunch plan` prints."""
    data = public(plan)
    device, environment = data["device"], data["environment"]
    assumed = ", assumed: it was not found here" if device["assumed"] else ""
    product = f", {device['product']}" if device["product"] else ""
    product += ", simulated" if device["simulated"] else ""
    yield f"name         {data['name']}"
    yield f"engine       {data['engine']} on {device['kind']} {device['ids']}{product}{assumed}"
    yield f"model        {data['model']['id']} ({data['model']['format']}) from {data['model']['source']}"
    yield f"             {data['model']['path']}"
    if plan.memory:
        yield f"memory       {fit.line(plan.memory)}"
    yield f"runtime      {data['runtime']}"
    yield f"environment  {environment['path']} (Python {environment['python']})"
    for key in ("requirements", "overrides", "indexes"):
        if environment[key]:
            yield f"             {key}: {', '.join(environment[key])}"
    for step in data["builds"]:
        yield f"build        {step['name']} → {step['output']}"
        yield f"             {shlex.join(step['argv'])}"
    for name, value in data["env"].items():
        yield f"env          {name}={value}"
    if plan.inherit:
        yield f"inherit      {', '.join(plan.inherit)}"
    yield f"argv         {shlex.join(data['argv'])}"
    for name, url in data["endpoints"].items():
        if url:
            yield f"endpoint     {name}: {url}"
    for name, probe in data["probes"].items():
        yield f"probe        {name}: {' '.join(f'{k}={v}' for k, v in probe.items() if v is not None)}"
    if plan.container:
        yield from _container_lines(plan.container)
    for path, target in data["links"].items():
        yield f"link         {plan.run_dir}/{path} → {target}"
    for path, text in data["files"].items():
        yield f"file         {plan.run_dir}/{path}"
        yield from (f"  | {line}" for line in text.splitlines())


def whole(plan: LaunchPlan) -> dict[str, Any]:
    """Everything, secrets too: for a pipe between our own processes, never for a file or a screen."""
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


def _container_lines(container: Container) -> Iterator[str]:
    made = f", built on {container.build.base}" if container.build else ""
    yield f"container    {container.name}: {container.image}{made}"
    yield f"             at {container.daemon}, network {container.network}, user {container.user}"
    yield f"             ports {', '.join(f'{port.host}:{port.number}' for port in container.ports)}"
    for mount in container.mounts:
        yield f"mount        {mount.source}{'' if mount.read_only else ' (may be written to)'}"
    devices = (*container.cdi, *container.nodes, *(f"GPU {name}" for name in container.gpu_ids))
    if devices:
        yield f"devices      {', '.join(devices)}"
    told = {
        "cap_add": ", ".join(container.cap_add),
        "security": ", ".join(container.security),
        "shm_size": container.shm_size,
        "ipc": container.ipc,
        "memory": container.memory,
        "cpus": container.cpus,
        "pids": container.pids,
        "ulimits": ", ".join(f"{name}={most}" for name, most in container.ulimits.items()),
    }
    root = "; read-only" if container.read_only else ""
    yield f"limits       cap_drop ALL{root}; {'; '.join(f'{key} {value}' for key, value in told.items() if value)}"


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
