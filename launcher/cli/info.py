"""The verb `info`: what this machine has, who uses it, and which engines could run on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engines.base import RmLaunchError
from launcher import __version__, procfs, registry
from launcher.cli import inventory
from launcher.deployments.ledger import Ledger
from launcher.devices.base import DevicePlugin, Survey
from launcher.masking import mask_url
from launcher.output import gib, print_json, table
from launcher.paths import cache_root, environments_root, state_root
from launcher.prepare import environment_store

READY, FIRST_USE, MISSING = "ready", "on first use", "missing"


def info(args: argparse.Namespace) -> int:
    """Print what `gather` finds."""
    data = gather()
    if args.json:
        print_json(data)
    else:
        sys.stdout.write("\n".join(lines(data)) + "\n")
    return 0


def gather() -> dict[str, Any]:
    """Return the data that `--json` prints. Its keys are stable; a device lacks the keys of what is not known of it."""
    plugins = {kind: registry.device(kind) for kind in registry.names("device")}
    surveys = {kind: plugin.survey() for kind, plugin in plugins.items()}
    ledger = Ledger(state_root())
    made = environment_store.found(environments_root(cache_root()))
    return {
        "rmlaunch": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "state": str(state_root()),
        "cache": str(cache_root()),
        "devices": [device for kind, survey in surveys.items() for device in _devices(kind, survey, ledger)],
        "absent": {
            kind: plugin.looked_for
            for kind, plugin in plugins.items()
            if not surveys[kind].resources and kind != "remote"
        },
        "problems": [
            {"kind": kind, "what": problem.what, "remedy": problem.remedy, "unusable": problem.blocks}
            for kind, survey in surveys.items()
            for problem in survey.problems
        ],
        "versions": {kind: dict(survey.versions) for kind, survey in surveys.items() if survey.versions},
        "engines": [
            {"engine": name, "device": kind, **_engine(name, kind, plugins[kind], surveys[kind])}
            for name in registry.names("engine")
            for kind in registry.engine_class(name).capabilities.devices
            if kind in plugins
        ],
        "environments": [
            {"name": one.name, "path": str(one.path), "python": one.python, "size_bytes": one.size_bytes}
            for one in made
        ],
        "runtimes": list(_runtimes()),
    }


def _devices(kind: str, survey: Survey, ledger: Ledger) -> Iterator[dict[str, Any]]:
    held = ledger.held_devices(kind)
    for resource in survey.resources:
        attributes = {key: value for key, value in resource.attributes.items() if key != "holders"}
        holders = [
            {"pid": pid, "program": procfs.name(pid) or None, "bytes": size or None}
            for pid, size in sorted(resource.attributes.get("holders", {}).items())
        ]
        yield {
            "kind": kind,
            "id": resource.id,
            **attributes,
            "tags": sorted(resource.tags),
            "holders": holders,
            "deployment": held.get(resource.id),
        }


def _engine(name: str, kind: str, plugin: DevicePlugin, survey: Survey) -> dict[str, str | None]:
    """Its state on that kind of device, and the one thing that is missing, if anything is."""
    try:
        environment = inventory.environment_of(name, kind, cache_root())
    except (RmLaunchError, TypeError, ValueError) as exc:
        return {"state": MISSING, "missing": f"its config cannot be read: {exc}", "environment": None}
    path = environment.path if environment else None
    return {"state": MISSING, "missing": None, "environment": path} | _state(plugin, survey, environment)


def _state(plugin: DevicePlugin, survey: Survey, environment: Any) -> dict[str, str | None]:
    blocked = [problem.what for problem in survey.problems if problem.blocks]
    if not survey.resources:
        return {"missing": blocked[0] if blocked else f"no {plugin.label} found"}
    if environment is None:
        return {"missing": "its config names no packages for this device"}
    if Path(environment.path).exists():
        return {"state": READY}
    if unobtainable := next(inventory.without_account(environment.requirements, plugin.portals), None):
        return {"missing": mask_url(unobtainable)}
    return {"state": FIRST_USE}


# ---------------------------------------------------------------------------------------------------------- runtimes


def _runtimes() -> Iterator[dict[str, Any]]:
    ours = registry.names("runtime")
    for name in ours:
        if name not in ("docker", "ray"):
            yield {"name": name, "available": True, "supported": True, "detail": ""}
    for name, (available, detail) in (("docker", _docker()), ("ray", _ray())):
        yield {"name": name, "available": available, "supported": name in ours, "detail": detail}


def _docker() -> tuple[bool, str]:
    from launcher.runtimes import docker_daemon

    try:
        return True, docker_daemon.ping(docker_daemon.address())
    except docker_daemon.AwayError as exc:
        return False, str(exc).partition(";")[0]


def _ray() -> tuple[bool, str]:
    if find_spec("ray") is None:
        return False, "the package ray is not installed where rmlaunch runs"
    try:
        return True, f"ray {metadata.version('ray')}"
    except metadata.PackageNotFoundError:
        return True, "ray"


# ----------------------------------------------------------------------------------------------------------- showing


def lines(data: Mapping[str, Any]) -> Iterator[str]:
    """`gather`'s data as text for people."""
    yield f"rmlaunch {data['rmlaunch']}, Python {data['python']}; cache {data['cache']}, state {data['state']}"
    yield "\ndevices"
    yield from _table([_device_row(one) for one in data["devices"] if one["kind"] != "remote"])
    for kind, looked_for in data["absent"].items():
        yield f"  {kind:<9}none: looked for {looked_for}"
    yield from (f"  {kind} versions: {_pairs(told)}" for kind, told in data["versions"].items())
    for problem in data["problems"]:
        yield f"  {'unusable' if problem['unusable'] else 'note'}: {problem['what']}\n    → {problem['remedy']}"
    for kind in registry.names("device"):
        plugin = registry.device(kind)
        if plugin.note and any(one["kind"] == kind for one in data["devices"]) and kind != "remote":
            yield f"  {kind}: {plugin.note}"
    yield "\nengines"
    yield from _table([(one["engine"], one["device"], one["state"], one["missing"] or "") for one in data["engines"]])
    yield "\nenvironments"
    rows = [(one["name"], f"{gib(one['size_bytes'])}", f"Python {one['python']}", one["path"])
            for one in data["environments"]]  # fmt: skip
    yield from _table(rows) if rows else ["  none yet; they are made on first use"]
    yield "\nruntimes"
    yield from _table([(one["name"], _can(one), one["detail"]) for one in data["runtimes"]])


def _device_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    memory = [gib(one["memory_bytes"])] if "memory_bytes" in one else []
    if "used_bytes" in one:
        memory.append(f"{gib(one['used_bytes'])} used")
    if "available_bytes" in one:
        memory.append(f"{gib(one['available_bytes'])} available")
    more = [f"{one['cores']} cores"] if "cores" in one else []
    more += [f"{key} {one[key]}" for key in ("driver", "firmware", "status", "group") if key in one]
    more += ["MIG"] if one.get("mig") else []
    product = one.get("product") or one.get("model_name") or "unknown product"
    return f"{one['kind']} {one['id']}", product, ", ".join(memory), ", ".join(more), _use(one)


def _use(one: Mapping[str, Any]) -> str:
    who = [f"deployment {one['deployment']}"] if one["deployment"] else []
    for holder in one["holders"]:
        size = f" ({gib(holder['bytes'])})" if holder["bytes"] else ""
        who.append(f"pid {holder['pid']}{' ' + holder['program'] if holder['program'] else ''}{size}")
    return f"used by {', '.join(who)}" if who else ""


def _can(runtime: Mapping[str, Any]) -> str:
    if not runtime["supported"]:
        return "not a runtime of rmlaunch yet"
    return "available" if runtime["available"] else "not available"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    return (f"  {line}" for line in table(rows))


def _pairs(told: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in told.items())
