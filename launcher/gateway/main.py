"""The gateway's process.

    python -c "from launcher.gateway.main import main; main()" SETTINGS_JSON

It serves until SIGTERM, then drains. The settings are read again when the file changes, or the configs that it was
composed from (`launcher/gateway/reload.py`). It imports neither Hydra nor an engine's packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from launcher.gateway.backend import LocalBackend
from launcher.gateway.connection import ClientConnection
from launcher.gateway.ledger_watch import Seen, Watcher
from launcher.gateway.reload import SOCKET, Reloader
from launcher.gateway.routing import Ending
from launcher.gateway.server import TICK_S, Server
from launcher.gateway.settings import Settings
from launcher.paths import state_root
from launcher.supervise.control_socket import listen

log = logging.getLogger(__name__)

_BACKLOG = 4096
_DESCRIPTORS = 1 << 16
_USE_S = 30.0  #: seconds for the gateway's thread to take new settings
#: new objects after which cyclic garbage is looked for: the default would look every 20 requests
_GARBAGE = 50_000


class Gateway:
    """The server, with the watcher of the ledger and the reloader of settings that keep it up to date."""

    def __init__(self, file: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._file = file
        self._stopped = asyncio.Event()
        self._reloader = Reloader(file, self._use_from_thread)
        settings = self._reloader.settings
        self._backend = LocalBackend(settings)
        self._server = Server(settings, loop, self._backend)
        self._watcher = Watcher(state_root(), lambda name, seen: loop.call_soon_threadsafe(self._see, name, seen))

    async def run(self) -> None:
        """Serve until SIGTERM, and then until the answers that are on their way have ended."""
        settings = self._server.table.settings
        self._use(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopped.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reloader.now)
        self._watcher.look()  # before the first request: what is deployed is known from the beginning
        self._watcher.start()
        self._reloader.start()
        listening = await self._loop.create_server(lambda: ClientConnection(self._server), sock=_socket(settings))
        handed = await asyncio.start_unix_server(self._hand_over, sock=listen(self._file.parent, SOCKET))
        ticking = self._loop.create_task(self._tick())
        log.info("listening on %s port %d", settings.host, settings.port)
        await self._stopped.wait()
        handed.close()
        listening.close()
        self._server.drain()
        await self._drained(settings.drain_s)
        ticking.cancel()
        self._watcher.stop()
        self._reloader.stop()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._server.tick()
                self._backend.tick(self._server)
            except Exception:
                log.exception("a bug: the clock goes on")

    async def _drained(self, limit_s: float) -> None:
        deadline = self._loop.time() + limit_s
        while self._server.connections and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._server.connections):
            connection.close()

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take new settings from the user's own `rmlaunch gateway up`: nobody else can open the socket."""
        try:
            text = (await reader.read()).decode()
            done = await self._loop.run_in_executor(None, self._reloader.hand_over, text)
        except Exception as exc:
            log.exception("new settings were handed over, and are not understood")
            done = {"error": f"the gateway does not understand these settings: {exc}"}
        writer.write(json.dumps(done).encode())
        writer.close()

    def _use_from_thread(self, settings: Settings) -> None:
        """Call `_use` in the gateway's thread. Raises what that raises: nobody is to take them for settings in use."""

        async def use() -> None:
            self._use(settings)

        asyncio.run_coroutine_threadsafe(use(), self._loop).result(_USE_S)

    def _use(self, settings: Settings) -> None:
        variables = (member.api_key_env for route in settings.routes for member in route.members)
        self._backend.settings = settings
        self._server.use(settings, {name: os.environ.get(name) for name in variables if name})
        for seen in self._backend.seen():  # one that the config called a server until now is a deployment again
            self._see(seen.name, seen)

    def _see(self, name: str, seen: Seen | None) -> None:
        self._backend.see(name, seen)
        if self._server.table.is_remote(name):
            return
        replica = self._server.table.replica(name)
        replica.phase = "" if seen is None else seen.phase.value
        replica.on_its_way = seen is not None and seen.on_its_way
        if replica.upstream != (upstream := None if seen is None else seen.upstream):
            if replica.upstream is not None:
                replica.ending = Ending(replica.upstream.start, seen.cause if seen is not None else "")
            replica.point_to(upstream)
            replica.used = self._server.clock()
            replica.close_idle()
        if seen is None:
            self._server.table.prune()
        self._server.look_again()


def main() -> None:
    """Serve until SIGTERM, with the settings in the file that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    gc.set_threshold(_GARBAGE)
    _raise_descriptors()
    import uvloop

    async def serve() -> None:
        await Gateway(Path(sys.argv[1]), asyncio.get_running_loop()).run()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve())


def _raise_descriptors() -> None:
    """Allow this process as many descriptors as it may have: the usual 1024 are enough for half as many clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _socket(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


if __name__ == "__main__":
    main()
