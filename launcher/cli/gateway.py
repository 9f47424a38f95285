"""The verb `gateway`: start the gateway, in the foreground or detached, or give one that runs its new settings."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from engines.base import ConfigError, DeploymentError, RequestError, RmLaunchError

if TYPE_CHECKING:
    from engines.base import LaunchPlan
    from launcher.deployments.supervised import Supervised
    from launcher.gateway.reload import Asked

NAME = "gateway"  #: of its deployment, unless name=… says otherwise
_HAND_OVER_S = 10.0  #: for a gateway that runs, to take new settings

USAGE = """\
rmlaunch gateway up [-d] [--replace] [gateway=…] [gateway.routes.NAME=[a,b]] [name=gateway]
rmlaunch gateway key NAME          a new key for NAME, and what to write into the config

It is a deployment like others: rmlaunch ps, status gateway, logs gateway, stop gateway.
"""


def run(words: Sequence[str]) -> int:
    verb, *rest = words or ("",)
    if verb == "up":
        return _up(rest)
    if verb == "key":
        return _key(rest)
    if not verb:
        sys.stdout.write(USAGE)
        return 2
    raise ConfigError(f"gateway {verb} is not known; write rmlaunch gateway up, or rmlaunch gateway key NAME")


def _key(words: Sequence[str]) -> int:
    from launcher.gateway.settings import hashed

    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("name whose key it is: rmlaunch gateway key NAME")
    key = f"rml-{secrets.token_urlsafe(32)}"
    what = "admin_key: sha256:" if words[0] == "admin" else f"keys:\n  {words[0]}: sha256:"
    sys.stderr.write(f"this key is shown once, and kept nowhere; the config gets its hash:\n{what}{hashed(key, '')}\n")
    sys.stdout.write(f"{key}\n")
    return 0


def _up(words: Sequence[str]) -> int:
    from launcher.cli.stop import end
    from launcher.cli.words import split
    from launcher.config.compose import normalized
    from launcher.deployments.ledger import NameTakenError
    from launcher.deployments.records import Deployments
    from launcher.gateway.composing import composed, without_keys
    from launcher.gateway.reload import Asked, marks
    from launcher.paths import state_root

    detached, replace = bool({"-d", "--detach"} & {*words}), "--replace" in words
    overrides, config_dir = split([word for word in words if word not in ("-d", "--detach", "--replace")])
    name = next((item.partition("=")[2] for item in overrides if item.startswith("name=")), NAME)
    overrides = normalized([item for item in overrides if not item.startswith("name=")])
    config_dir = str(Path(config_dir).absolute()) if config_dir else None
    found = marks(config_dir)
    asked = Asked(without_keys(overrides), config_dir, composed(overrides, config_dir), found)
    while True:
        live = {item.name: item for item in Deployments(state_root()).all() if item.live}
        if name in live and not replace:
            from launcher.cli.up import when_it_serves  # not above: a first start does without the planner

            item = when_it_serves(live[name])
            return _apply(name, item.folder, item.plan, asked)
        if name in live:
            end(live[name], now=False)
        try:
            return _start(name, asked, detached=detached)
        except NameTakenError:  # another was faster
            replace = False


def _apply(name: str, folder: Path, plan: object, asked: Asked) -> int:
    """Give a gateway that runs its new settings."""
    from launcher.config.gateway import ENGINE
    from launcher.gateway.reload import SOCKET
    from launcher.supervise.control_socket import connect

    if not isinstance(plan, dict) or plan.get("engine") != ENGINE:
        raise RequestError(f"name={name!r} is taken by a deployment that is no gateway; choose another")
    try:
        with connect(folder / "run", _HAND_OVER_S, SOCKET) as connection:
            connection.sendall(asked.dumps().encode())
            connection.shutdown(socket.SHUT_WR)
            answer = json.loads(connection.makefile().read())
    except (OSError, ValueError) as exc:
        raise DeploymentError(f"{name} does not take its new settings ({exc}); --replace starts it anew") from exc
    if "error" in answer:
        raise RequestError(f"{name}: {answer['error']}")
    said = ", ".join(answer["changes"])
    sys.stderr.write(f"{name} is already up{f'; {said}' if said else ''}\n")
    if answer["unsaved"]:
        sys.stderr.write(f"it cannot write them down, and tries again: {answer['unsaved']}\n")
    sys.stdout.write(f"{name} {plan['endpoints']['http']}\n")
    return 0


def _start(name: str, asked: Asked, *, detached: bool) -> int:
    from launcher.deployments.ledger import Ledger
    from launcher.deployments.spawn import Spawned
    from launcher.gateway import plan as planning
    from launcher.paths import state_root
    from launcher.prepare.steps import make_run_folder
    from launcher.serving.hand_over import hand_over

    ledger, host, port = Ledger(state_root()), asked.settings.host, asked.settings.port

    def choose() -> tuple[LaunchPlan, tuple[int, ...]]:
        ledger.free_name(name, name)
        ledger.choose_ports(host, {"gateway.port": port})
        return planning.plan(name, asked, str(ledger.deployments / name / "run")), (port,)

    spawned, conf = Spawned(), planning.supervise(asked.settings)
    try:
        deployment = hand_over(spawned, ledger, choose, make_run_folder, conf, detached=detached)
        try:
            deployment.wait_ready()
            sys.stdout.write(f"{name} {deployment.plan.endpoints.http.url}\n")
            sys.stdout.flush()
            return 0 if detached else _stay(deployment)
        finally:
            deployment.close()
    finally:
        spawned.close()


def _stay(gateway: Supervised) -> int:
    """In the foreground, until it is stopped."""
    from launcher.supervise.lifecycle import Phase

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        gateway.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    plan = gateway.plan
    sys.stderr.write(f"ready: {plan.name} at {plan.endpoints.http.url}; Ctrl-C stops it\n")
    news = gateway.wait_final()
    if news.phase is not Phase.STOPPED or news.leftovers:
        raise RmLaunchError(json.dumps(news.leftovers)) if news.leftovers else gateway.failure()
    sys.stderr.write(f"stopped: {plan.name}; nothing is left of it\n")
    return 0
