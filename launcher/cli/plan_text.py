"""A `LaunchPlan` as text for a person; secrets are masked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from engines.base import Container, LaunchPlan
from launcher.fit import estimate
from launcher.plan_json import public


def lines(plan: LaunchPlan) -> Iterator[str]:
    """Yield the lines that `rmlaunch plan` prints."""
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
        yield f"memory       {estimate.line(plan.memory)}"
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
