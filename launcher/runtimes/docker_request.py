"""A plan's container as Docker is asked for it: through its SDK, and as a command line. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engines.base import Container, LaunchPlan
from engines.base import Mount as MountedAt
from engines.container import TEMPORARY
from launcher.masking import is_secret, mask_argv, mask_url

if TYPE_CHECKING:
    from docker import APIClient


def environment(plan: LaunchPlan) -> Mapping[str, str]:
    """Return the variables of the program inside; the plan's win over the container's."""
    assert plan.container is not None
    return {**plan.container.env, **plan.env}


def create_arguments(plan: LaunchPlan, client: APIClient, linked: Sequence[MountedAt] = ()) -> dict[str, Any]:
    """Return the body of a request for a new container; `linked` is mounted besides the plan's mounts."""
    from docker.types import DeviceRequest, Healthcheck, LogConfig, Mount, Ulimit

    box = plan.container
    assert box is not None
    requests = []
    if box.gpu_ids:
        requests.append(DeviceRequest(device_ids=list(box.gpu_ids), capabilities=[["gpu"]]))
    if box.cdi:
        requests.append(DeviceRequest(driver="cdi", device_ids=list(box.cdi)))
    limits: dict[str, Any] = {}
    if box.memory:
        limits |= {"mem_limit": box.memory, "memswap_limit": box.memory}
    if box.cpus:
        limits["nano_cpus"] = int(box.cpus * 1e9)
    host = client.create_host_config(
        mounts=[Mount(one.target, one.source, type="bind", read_only=one.read_only) for one in (*box.mounts, *linked)],
        port_bindings={port.number: (port.host, port.number) for port in box.ports},
        network_mode=box.network,
        devices=list(box.nodes),
        device_requests=requests,
        cap_drop=list(box.cap_drop),
        cap_add=list(box.cap_add),
        security_opt=list(box.security),
        group_add=list(box.groups),
        ulimits=[Ulimit(name=name, soft=most, hard=most) for name, most in box.ulimits.items()],
        sysctls=dict(box.sysctls),
        pids_limit=box.pids,
        read_only=box.read_only,
        tmpfs=dict(_temporary(box)),
        ipc_mode=box.ipc,
        shm_size=box.shm_size,
        log_config=LogConfig(type=LogConfig.types.JSON, config=dict(_log_options(box))),
        init=True,
        **limits,
    )
    config: dict[str, Any] = client.create_container_config(
        box.image,
        command=list(plan.argv[1:]),
        entrypoint=[plan.argv[0]],
        environment=dict(environment(plan)),
        user=box.user,
        working_dir=plan.run_dir,
        labels=dict(box.labels),
        ports=[port.number for port in box.ports],
        healthcheck=Healthcheck(test=["NONE"]),
        host_config=host,
    )
    return config


def docker_run(plan: LaunchPlan) -> tuple[str, ...]:
    """Return the same container as the words of a `docker run`.

    A variable with a secret is named without its value, which Docker then takes from our variable of that name. A
    secret in the engine's own words is masked.
    """
    assert plan.container is not None
    return ("docker", "run", *_options(plan, plan.container), plan.container.image, *mask_argv(plan.argv)[1:])


def shown(plan: LaunchPlan) -> str:
    """Return `docker_run` for a terminal: an option in each line."""
    assert plan.container is not None
    command = shlex.join([plan.container.image, *mask_argv(plan.argv)[1:]])
    options = [shlex.quote(option) for option in _options(plan, plan.container)]
    return " \\\n  ".join(["docker run", *options, command])


def _options(plan: LaunchPlan, box: Container) -> Iterator[str]:
    yield from ("--detach", "--init", f"--name={box.name}", f"--network={box.network}")
    yield from (f"--label={name}={value}" for name, value in box.labels.items())
    yield from ([f"--user={box.user}"] if box.user else [])
    yield from (f"--cap-drop={name}" for name in box.cap_drop)
    yield from (f"--cap-add={name}" for name in box.cap_add)
    yield from (f"--security-opt={option}" for option in box.security)
    yield from (f"--group-add={name}" for name in box.groups)
    yield from (f"--publish={port.host}:{port.number}:{port.number}" for port in box.ports)
    if box.gpu_ids:
        yield f'--gpus="device={",".join(box.gpu_ids)}"'  # the quotes are Docker's: it reads CSV
    yield from (f"--device={node}" for node in (*box.cdi, *box.nodes))
    yield from (f"--ulimit={name}={most}:{most}" for name, most in box.ulimits.items())
    yield from (f"--sysctl={name}={value}" for name, value in box.sysctls.items())
    yield from ([f"--ipc={box.ipc}"] if box.ipc else [])
    yield from ([f"--shm-size={box.shm_size}"] if box.shm_size else [])
    yield from ([f"--memory={box.memory}", f"--memory-swap={box.memory}"] if box.memory else [])
    yield from ([f"--cpus={box.cpus:g}"] if box.cpus else [])
    yield from ([f"--pids-limit={box.pids}"] if box.pids else [])
    yield from (["--read-only"] if box.read_only else [])
    yield from (f"--tmpfs={path}:{options}" for path, options in _temporary(box).items())
    yield from ("--no-healthcheck", "--log-driver=json-file")
    yield from (f"--log-opt={name}={value}" for name, value in _log_options(box).items())
    for mount in box.mounts:
        read_only = ",readonly" if mount.read_only else ""
        yield f"--mount=type=bind,source={mount.source},target={mount.target}{read_only}"
    for name, value in environment(plan).items():
        secret = is_secret(name) or mask_url(value) != value
        yield f"--env={name}" if secret else f"--env={name}={value}"
    yield from (f"--workdir={plan.run_dir}", f"--entrypoint={plan.argv[0]}")


def _temporary(box: Container) -> Mapping[str, str]:
    """Return folders in memory, with their options: engines compile programs there and load them."""
    return {TEMPORARY: "exec,mode=1777"} if box.read_only else {}


def _log_options(box: Container) -> Mapping[str, str]:
    return {"max-size": f"{box.log_bytes >> 20}m", "max-file": "2"}
