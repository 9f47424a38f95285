"""What is deployed, for commands that come later: found, asked, and adopted where its supervisor was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import DeploymentError, LaunchPlan, RequestError, Target
from launcher import registry, structs
from launcher.atomic import write_text
from launcher.client import Client, Connected
from launcher.control import Connection, News, Supervised
from launcher.gateway.settings import ENGINE as GATEWAY
from launcher.ledger import Claim, Ledger
from launcher.lifecycle import Phase
from launcher.orders import Orders
from launcher.runtimes.base import Handle
from launcher.runtimes.process import is_alive
from launcher.spawn import Spawned
from launcher.suggest import unknown

log = logging.getLogger(__name__)

_ADOPT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One entry of the ledger."""

    name: str
    folder: Path
    live: bool  #: a supervisor has it
    news: News  #: the last that was said
    plan: Mapping[str, Any]  #: as `rmlaunch plan --json` prints it

    def connect(self) -> Connection:
        """Raises `RequestError` where it has ended."""
        if self.live:
            with contextlib.suppress(OSError):
                return Connection(self.folder)
        raise RequestError(f"{self.name} is {self.news.phase.value}, not running; start it with `rmlaunch up -d`")


class Deployments:
    """All of one state folder. Asking for them adopts those that serve without a supervisor."""

    def __init__(self, state: Path) -> None:
        self._ledger = Ledger(state)

    def all(self) -> list[Deployment]:
        """By name, ended ones too."""
        self._adopt_orphans()
        folders = sorted(path.parent for path in self._ledger.deployments.glob("*/plan.json"))
        return [self._read(folder) for folder in folders]

    def find(self, name: str) -> Deployment:
        """Raises `RequestError` with the names that there are."""
        found = {deployment.name: deployment for deployment in self.all()}
        if name not in found:
            raise RequestError(unknown("deployment", name, sorted(found)))
        return found[name]

    def wait_ended(self, name: str, timeout_s: float = 5.0) -> None:
        """Block until the name is free: a supervisor says its last word a moment before it ends.

        Raises `DeploymentError` where it is not after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while self._ledger.is_live(name):
            if time.monotonic() > deadline:
                raise DeploymentError(f"{name} has stopped, but its supervisor has not ended within {timeout_s:g} s")
            time.sleep(0.005)

    def _read(self, folder: Path) -> Deployment:
        live = self._ledger.is_live(folder.name)
        plan = _json(folder / "plan.json").get("plan", {})
        return Deployment(folder.name, folder, live, _news(folder, live), plan)

    def _adopt_orphans(self) -> None:
        if not self._ledger.deployments.exists():
            return
        adopted: list[Supervised] = []
        with self._ledger.exclusive():
            for folder in sorted(self._ledger.deployments.iterdir()):
                news = _said(folder)
                if news is None and (folder / "plan.json").exists():
                    self._end_unknown(folder)
                if news and not news.phase.final and self._is_orphan(folder.name, news):
                    adopted += self._adopt(folder, news)
        for supervised in adopted:
            supervised.wait_settled(_ADOPT_TIMEOUT_S)
            supervised.leave()

    def _is_orphan(self, name: str, news: News) -> bool:
        """Whether its supervisor is gone: the lock says so, for a number is given to another process in time.

        One that was killed a moment ago may hold the lock still; `take_over` waits for that.
        """
        return not self._ledger.is_live(name) or not is_alive(news.supervisor or 0)

    def _end_unknown(self, folder: Path) -> None:
        """End what nobody could ever find again: its record cannot be read, and its supervisor is gone."""
        claim = self._ledger.take_over(folder.name, timeout_s=0.1)
        if claim is not None:  # else its supervisor, or who is starting one, knows better and will write again
            reason = "its state.json cannot be read, and it has no supervisor; what was left of it has been ended"
            self._end(claim, News(Phase.FAILED, reason))

    def _adopt(self, folder: Path, news: News) -> list[Supervised]:
        """A supervisor for what still serves; what does not is ended, and said to have."""
        claim = self._ledger.take_over(folder.name)
        if claim is None:  # another launch of its name has begun
            return []
        try:
            legacy = self._ledger.legacy(folder.name)
        except DeploymentError as exc:
            log.warning("%s has no supervisor, and it cannot be told whether it serves: %s", folder.name, exc)
            claim.lock.close()
            return []
        if legacy is None or news.handle is None:
            reason = "its supervisor was killed; its program has ended since, or was not to outlive it"
            self._end(claim, News(Phase.FAILED, reason, log=news.log))
            return []
        orders = Orders.loads(legacy)
        orders = dataclasses.replace(orders, adopt=Handle(**news.handle), starts=news.starts, served=news.served)
        return [Supervised(Spawned(), orders, claim)]

    def _end(self, claim: Claim, last: News) -> None:
        """Leave nothing of a deployment that nobody can adopt, and write its last word."""
        left = self._ledger.sweep(claim.folder.name)
        write_text(claim.folder / "state.json", json.dumps(_record(dataclasses.replace(last, leftovers=left))))
        claim.lock.close()


class Attached(Client):
    """A deployment that somebody else has started, to be asked; it goes on when this is closed."""

    def __init__(self, deployment: Deployment) -> None:
        with deployment.connect() as connection:
            given = connection.ask("target")
        plan = structs.load(LaunchPlan, given["plan"])
        if plan.engine == GATEWAY:
            raise RequestError(
                f"{plan.name} is the gateway; ask it as OpenAI's server, at {plan.endpoints.http.url}/v1"
            )
        target = Target(plan.endpoints, plan.model.id, given["options"], given["api_key"], key=plan.key)
        self._asked = Connected(registry.engine(plan.engine), plan, target)

    @property
    def plan(self) -> LaunchPlan:
        return self._asked.plan

    def close(self) -> None:
        self._asked.engine.close()

    def _connected(self) -> Connected:
        return self._asked


def _said(folder: Path) -> News | None:
    """The state on disk; None where nothing, or nothing that can be read, is there."""
    try:
        return News.read((folder / "state.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _news(folder: Path, live: bool) -> News:
    if live:
        with contextlib.suppress(OSError), Connection(folder) as connection:
            return News.read(json.dumps(connection.ask("status")).encode())
        return _said(folder) or News(Phase.PREPARING)
    return _said(folder) or News(Phase.FAILED, "its state.json cannot be read")


def _record(news: News) -> dict[str, Any]:
    data = dataclasses.asdict(news)
    return {"state": data.pop("phase"), **data}


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
