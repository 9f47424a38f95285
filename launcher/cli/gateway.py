"""The verbs `gateway up` and `gateway key`: start the gateway or give it new settings, and make a key."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from engines.base import DeploymentError, RequestError, RmLaunchError
from launcher.output import note, print_endpoint

if TYPE_CHECKING:
    from engines.base import LaunchPlan
    from launcher.deployments.supervised import Supervised
    from launcher.gateway.reload import ComposedRequest

NAME = "gateway"  #: of its deployment, unless name=… says otherwise
_HAND_OVER_S = 10.0  #: for a gateway that runs, to take new settings


def key(args: argparse.Namespace) -> int:
    """Print a new key, and on stderr what the config must have for it."""
    from launcher.gateway.settings import hashed

    made = f"rml-{secrets.token_urlsafe(32)}"
    what = "admin_key: sha256:" if args.name == "admin" else f"keys:\n  {args.name}: sha256:"
    note(f"this key is shown once, and kept nowhere; the config gets its hash:\n{what}{hashed(made, '')}")
    sys.stdout.write(f"{made}\n")
    return 0


def up(args: argparse.Namespace) -> int:
    """Start the gateway, in the foreground or detached; one that runs gets its new settings."""
    from launcher.cli.stop import end
    from launcher.config.compose import normalized
    from launcher.deployments.ledger import NameTakenError
    from launcher.deployments.records import Deployments
    from launcher.gateway.compose_process import composed, without_keys
    from launcher.gateway.reload import ComposedRequest, marks
    from launcher.paths import state_root

    replace, given = args.replace, args.overrides
    name = next((item.partition("=")[2] for item in given if item.startswith("name=")), NAME)
    overrides = normalized([item for item in given if not item.startswith("name=")])
    config_dir = str(Path(args.config_dir).absolute()) if args.config_dir else None
    found = marks(config_dir)
    asked = ComposedRequest(without_keys(overrides), config_dir, composed(overrides, config_dir), found)
    while True:
        live = {item.name: item for item in Deployments(state_root()).all() if item.live}
        if name in live and not replace:
            from launcher.cli.up import when_it_serves  # not above: a first start does without the planner

            item = when_it_serves(live[name])
            return _apply(name, item.folder, item.plan, asked)
        if name in live:
            end(live[name], now=False)
        try:
            return _start(name, asked, detached=args.detach)
        except NameTakenError:  # another was faster
            replace = False


def _apply(name: str, folder: Path, plan: object, asked: ComposedRequest) -> int:
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
    note(f"{name} is already up{f'; {said}' if said else ''}")
    if answer["unsaved"]:
        note(f"it cannot write them down, and tries again: {answer['unsaved']}")
    print_endpoint(name, plan["endpoints"]["http"])
    return 0


def _start(name: str, asked: ComposedRequest, *, detached: bool) -> int:
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
            if not detached:
                _obey_signals(deployment)  # before it is told that it serves: who has read that may press Ctrl-C
            print_endpoint(name, deployment.plan.endpoints.http.url)
            sys.stdout.flush()
            return 0 if detached else _stay(deployment)
        finally:
            deployment.close()
    finally:
        spawned.close()


def _obey_signals(gateway: Supervised) -> None:
    """Let the first SIGINT or SIGTERM drain the gateway, and the next one kill it."""
    ask = iter((gateway.stop,))

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        next(ask, gateway.kill)()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def _stay(gateway: Supervised) -> int:
    """Stay until the gateway has stopped."""
    from launcher.supervise.lifecycle import Phase

    plan = gateway.plan
    note(f"ready: {plan.name} at {plan.endpoints.http.url}; Ctrl-C stops it")
    news = gateway.wait_final()
    if news.phase is not Phase.STOPPED or news.leftovers:
        raise RmLaunchError(json.dumps(news.leftovers)) if news.leftovers else gateway.failure()
    note(f"stopped: {plan.name}; nothing is left of it")
    return 0
