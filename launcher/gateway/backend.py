"""The deployments of this machine behind the gateway: what they are, and starting and stopping them.

Starts and stops are `rmlaunch` commands of their own: a deployment that the gateway starts is one like any other, and
lives on when the gateway ends.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.base import RequestError
from launcher.gateway.errors import ENGINE, Failure
from launcher.gateway.ledger_watch import Seen
from launcher.gateway.routing import Replica
from launcher.gateway.server import Server
from launcher.gateway.settings import Settings
from launcher.supervise import logs
from launcher.supervise.lifecycle import Phase

log = logging.getLogger(__name__)

_RMLAUNCH = "import sys; sys.path[:] = filter(None, sys.path); from launcher.cli.main import main; main()"
#: seconds for the ledger's watcher to see the effect of a command
_SEEN_S = 3.0
#: seconds after a start that failed, until a request may try it again
_AGAIN_S = 10.0


class LocalBackend:
    """The deployments of this machine, from the ledger. It belongs to the gateway's thread alone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._seen: dict[str, Seen] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, str]] = {}  #: when a start failed, and why
        self._stopping: set[str] = set()

    def see(self, name: str, seen: Seen | None) -> None:
        """Take in what the ledger's watcher has seen of a deployment; None for one that is gone."""
        if seen is None:
            self._seen.pop(name, None)
        else:
            self._seen[name] = seen

    def seen(self) -> list[Seen]:
        """Return all deployments as they were seen last."""
        return list(self._seen.values())

    # ------------------------------------------------------------------------------------------------- as `Backend`

    def start(self, name: str) -> bool:
        """Run `rmlaunch up` for a deployment, and return whether it is on its way: see `Backend.start`."""
        if name in self._starting or name in self._stopping:
            return True
        failed = self._failed.get(name)
        if failed is not None and time.monotonic() - failed[0] < _AGAIN_S:
            return False
        startable = self.settings.startable[name]
        log.info("%s: starting it: %s", name, " ".join(startable.launch))
        task = asyncio.ensure_future(self._launch(name, startable.launch))
        self._starting[name] = task
        task.add_done_callback(lambda _: self._starting.pop(name, None))
        return True

    def why_failed(self, name: str) -> str:
        """Return why a deployment could not be started the last time; empty where it could."""
        return self._failed[name][1] if name in self._failed else ""

    async def load(self, name: str) -> Mapping[str, Any]:
        """Start a deployment and wait until it serves; at once for one that does. Raises `Failure`."""
        if self._serves(name):
            return {"name": name, "state": "READY"}
        if name not in self.settings.startable:
            names = ", ".join(sorted(self.settings.startable)) or "none yet"
            raise Failure(404, f"{name!r} is not in gateway.deployments, which says what may be started: {names}",
                          "model_not_found")  # fmt: skip
        if name in self._stopping:
            raise Failure(409, f"{name} is being stopped; ask again when it has", "stopping")
        self._failed.pop(name, None)
        self.start(name)
        await asyncio.shield(self._starting[name])
        if why := self.why_failed(name):
            raise Failure(502, f"{name} could not be started: {why}", "load_failed", ENGINE)
        return {"name": name, "state": "READY"}

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Run `rmlaunch stop` for a deployment, and wait until it is seen to have ended. Raises `Failure`."""
        seen = self._seen.get(name)
        if seen is None or seen.phase.final:
            raise Failure(404, f"there is no deployment {name!r} that runs", "model_not_found")
        self._stopping.add(name)
        try:
            code, said = await _run("stop", name)
            if code == 0:
                await self._until(lambda: not self._serves(name))
        finally:
            self._stopping.discard(name)
        if code == RequestError.exit_code:
            raise Failure(404, said, "model_not_found")
        if code != 0:
            raise Failure(502, f"{name} could not be stopped: {said}", "unload_failed", ENGINE)
        return {"name": name, "state": "STOPPED"}

    def deployments(self) -> list[Mapping[str, Any]]:
        """Return all deployments that run or may be started, sorted by name, as `/models` shows them."""
        known = [_shown(seen) for seen in self._seen.values()]
        others = [
            {
                "name": name,
                "state": "STARTING" if name in self._starting else "UNLOADED",
                "reason": self.why_failed(name),
            }
            for name in self.settings.startable.keys() - self._seen.keys()
        ]
        return sorted([*known, *others], key=lambda item: str(item["name"]))

    def log(self, name: str, lines: int) -> str:
        """Return the last `lines` of the log of a deployment's engine. Raises `Failure` (404)."""
        seen = self._seen.get(name)
        if seen is None or not seen.news.log:
            raise Failure(404, f"there is no log of a deployment {name!r}", "not_found")
        return "\n".join(logs.tail(Path(seen.news.log))[-lines:])

    # --------------------------------------------------------------------------------------------------- the clock

    def tick(self, server: Server) -> None:
        """Stop the deployments that nobody has asked for their `ttl_s`."""
        now = server.clock()
        for name, startable in self.settings.startable.items():
            replica = server.table.replicas.get(name)
            if startable.ttl_s is None or replica is None or name in self._stopping or not self._serves(name):
                continue
            if replica.in_flight == 0 and now - replica.used > startable.ttl_s:
                log.info("%s: nobody has asked it for %g s: stopping it", name, startable.ttl_s)
                replica.point_to(None)  # at once: what comes now waits until it is started again
                self._stopping.add(name)
                task = asyncio.ensure_future(self._unload_idle(replica))
                server.tasks.add(task)
                task.add_done_callback(server.tasks.discard)

    async def _unload_idle(self, replica: Replica) -> None:
        try:
            await self.unload(replica.name)
        except Failure as failure:
            log.warning("%s", failure.message)
            if replica.upstream is None and replica.name in self._seen:
                replica.point_to(self._seen[replica.name].upstream)

    def _serves(self, name: str) -> bool:
        seen = self._seen.get(name)
        return seen is not None and seen.phase in (Phase.READY, Phase.DEGRADED)

    async def _until(self, seen: Callable[[], bool]) -> None:
        """Wait until the ledger's watcher, which looks a few times a second, has seen it, too: at most `_SEEN_S`."""
        deadline = time.monotonic() + _SEEN_S
        while not seen() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _launch(self, name: str, words: list[str]) -> None:
        code, said = await _run("up", "-d", *words, f"name={name}")
        if code == 0:
            self._failed.pop(name, None)
            await self._until(lambda: self._serves(name))
        else:
            log.warning("%s: could not be started: %s", name, said)
            self._failed[name] = (time.monotonic(), said)


async def _run(*words: str) -> tuple[int, str]:
    """Run an `rmlaunch` command; return its exit code, and the last error that it printed, or its last line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RMLAUNCH, *words, cwd="/", stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    _, said = await process.communicate()
    lines = said.decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return process.returncode or 0, (errors or lines or [""])[-1]


def _shown(seen: Seen) -> Mapping[str, Any]:
    plan, news = seen.plan, seen.news
    device = plan.get("device", {})
    return {
        "name": seen.name,
        "state": seen.phase.value,
        "reason": news.reason,
        "engine": plan.get("engine", ""),
        "device": device.get("kind", ""),
        "device_ids": device.get("ids", []),
        "runtime": plan.get("runtime", ""),
        "model": plan.get("model", {}).get("id", ""),
        "endpoint": plan.get("endpoints", {}).get("http", ""),
        "restarts": max(0, news.starts - 1),
        "since": news.since,
    }
