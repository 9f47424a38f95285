"""`up -d`: start what is not up, or wait for another launch that starts the same."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from engines.base import ConfigError, DeploymentError, RequestError
from launcher import plan_json
from launcher.cli.stop import end
from launcher.config.compose import normalized
from launcher.config.schema import LaunchConfig
from launcher.deployments.holders import described
from launcher.deployments.ledger import Ledger, NameTakenError
from launcher.deployments.records import Deployment, Deployments
from launcher.deployments.spawn import Spawned
from launcher.output import note
from launcher.paths import state_root
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import Settled, settle
from launcher.progress import Progress
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase

_PERIOD_S = 0.2
_SILENCE_S = 10.0  #: that a supervisor may have, while many start


def bring_up(overrides: Sequence[str], config_dir: str | None, spawned: Spawned, *, replace: bool) -> tuple[str, str]:
    """Return the name and the endpoint of what serves by then.

    Raises `RequestError` where another plan has the name and `replace` is not asked for, `DeploymentError` where the
    launch that was waited for fails, and what `ServingEngine.start` raises.
    """
    machine = this_machine(launches=True)
    settled = settle(normalized(overrides), machine, config_dir)
    if settled.config.prompt is not None:
        raise ConfigError("prompt= asks once and stops; with up, ask with `rmlaunch infer NAME TEXT`")
    for reason in settled.reasons:
        note(reason)
    with contextlib.ExitStack() as replacing:
        return _brought_up(settled, machine, spawned, replacing if replace else None)


def _brought_up(
    settled: Settled, machine: Machine | None, spawned: Spawned, replacing: contextlib.ExitStack | None
) -> tuple[str, str]:
    name, lost, ours = settled.config.name, False, False
    while True:
        found = {item.name: item for item in Deployments(state_root()).all()}
        item = found.get(name or "")
        if item is not None and item.live:
            changes = _changes(item, settled.config)
            if not changes:
                item = when_it_serves(item)
                note(f"{item.name} is already up")
                return item.name, item.told("endpoints", "http")
            if replacing is None:
                raise _is_another(item, changes)
            if not ours:  # until it is closed, those who wait for the deployment know that another comes
                replacing.enter_context(Ledger(state_root()).coming_back(item.name))
                ours = True
                continue  # somebody else may have replaced it by now
            end(item, now=False)
            machine = None  # that has given its devices back: they are looked at again
        elif lost and item is not None:
            raise _has_ended(item)
        try:
            first = None if lost else spawned
            return _started(ServingEngine(settled, Progress(), first, machine=machine, detached=True))
        except NameTakenError:  # another launch was faster
            if name is None or lost:
                raise
            lost, machine = True, None


def _started(deployment: ServingEngine) -> tuple[str, str]:
    try:
        deployment.start()
        return deployment.name, deployment.plan.endpoints.http.url
    finally:
        deployment.close()


def _changes(item: Deployment, config: LaunchConfig) -> list[str]:
    """Return, in words, where the plan that has the name differs from that of `config`; empty for the same plan."""
    engine, spec = resolve(config, this_machine(launches=True, replacing=item.name))
    wanted = plan_json.public(engine.plan(spec))
    return list(_differences(dict(item.plan), json.loads(json.dumps(wanted))))


def _is_another(item: Deployment, changes: Sequence[str]) -> RequestError:
    shown = "\n  ".join([*changes[:8], *(["…"] if len(changes) > 8 else [])])
    return RequestError(
        f"{item.name} is up with another plan; --replace drains it and starts this one. It differs in:\n  {shown}"
    )


def when_it_serves(item: Deployment) -> Deployment:
    """Wait for whoever starts it, as long as somebody does; returns it as it is then.

    Raises `DeploymentError` where it does not come to serve.
    """
    deployments, heard, told = Deployments(state_root()), time.monotonic(), False
    while item.news.phase not in (Phase.READY, Phase.DEGRADED):
        if item.news.phase is not Phase.UNKNOWN:
            heard = time.monotonic()
        elif time.monotonic() > heard + _SILENCE_S:
            raise DeploymentError(item.news.reason)
        if not item.live or item.news.phase.final:
            item = deployments.find(item.name)  # what serves without a supervisor gets another one
            if not item.live or item.news.phase.final:
                raise _has_ended(item)
        if not told:
            note(f"{item.name} is {item.news.phase.value}; waiting for {described(item.folder / 'lock')}")
            told = True
        time.sleep(_PERIOD_S)
        item = deployments.look(item.folder)
    return item


def _has_ended(item: Deployment) -> DeploymentError:
    why = f"{item.news.phase.value}, {item.news.reason}" if item.news.reason else item.news.phase.value
    return DeploymentError(f"{item.name}: another launch of it was waited for, and it has ended: {why}")


def _differences(have: Any, want: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each leaf that is not the same: `argv.7: '2048' → '4096'`."""
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted({*have, *want}):
            place = f"{path}.{key}" if path else key
            ours = key in want or plan_json.is_known(place)  # a newer release may write more of a plan
            if ours and (key in have or not plan_json.is_default(place, want[key])):
                yield from _differences(have.get(key), want.get(key), place)
    elif isinstance(have, list) and isinstance(want, list) and len(have) == len(want):
        for number, (old, new) in enumerate(zip(have, want, strict=True)):
            yield from _differences(old, new, f"{path}.{number}")
    elif have != want:
        yield f"{path}: {_short(have)} → {_short(want)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
