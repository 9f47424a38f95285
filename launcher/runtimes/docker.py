"""The engine's program in a Docker container, made anew for each start and removed after it.

Docker's daemon keeps the container whatever becomes of its supervisor; the label `rmlaunch.folder` says whose it is,
and with that it is found again, adopted or removed. The image's HEALTHCHECK is switched off: our own probes decide.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engines.base import Container, DeploymentError, LaunchPlan, Mount
from engines.container import LABEL_FOLDER
from launcher.procfs import boot_id, is_the_same, start_ticks
from launcher.runtimes import docker_daemon, keeper
from launcher.runtimes.base import UNSEEN, Activity, Exit, Handle, NotAdoptableError, Runtime
from launcher.runtimes.docker_daemon import AwayError, explained, when_back
from launcher.runtimes.docker_log import DockerLog
from launcher.runtimes.docker_request import create_arguments
from launcher.runtimes.process import remove_leftovers

if TYPE_CHECKING:
    from docker import APIClient

_LOOK_PERIOD_S = 0.01
_AWAY_PERIOD_S = 0.2
_LOG_END_S = 2.0  #: seconds until the last words of a container have come
_SIGNALLED = 128  #: added by Docker, as by a shell, to the number of the signal that ended a program


class DockerRuntime(Runtime):
    """The runtime whose program is in a container, which Docker's daemon keeps."""

    name: ClassVar[str] = "docker"

    def __init__(self) -> None:
        self._client: APIClient | None = None
        self._since = time.time()
        self._log: DockerLog | None = None
        self._ending: _Ending | None = None
        self._keeper = (0, 0)  #: the keeper's pid and start; (0, 0) if there is none

    def start(self, plan: LaunchPlan, log: Path, orders: bytes | None = None) -> Handle:
        """Create and start a container, after removing those of an earlier start.

        Waits for a daemon that is away, at most `docker_daemon.BACK_S`. With `orders` it also starts a keeper for them.
        """
        container = _container(plan)
        self._end_keeper()  # the old keeper has the orders of the last start
        try:
            created, pid = when_back(lambda: self._start(plan, container))
        except AwayError as exc:
            raise DeploymentError(f"{plan.name}: {exc}") from exc
        self._follow(created, container.daemon, log)
        if orders is not None:
            self._keeper = keeper.start(plan.run_dir, orders)
        return Handle(pid, _ticks(pid), boot_id(), created, container.daemon, *self._keeper)

    def _start(self, plan: LaunchPlan, container: Container) -> tuple[str, int]:
        """The id of a new container that runs, and its program's pid."""
        client = self._connect(container.daemon)
        with explained():
            self._since = time.time()
            # One may be left of an earlier start, whose supervisor was killed. Somebody else's is left alone.
            if left := _remove_all(client, plan.run_dir, deadline_s=5.0):
                raise DeploymentError(f"{plan.name}: of an earlier start there is still {', '.join(left)}")
            body = create_arguments(plan, client, linked(plan.model.path))
            created = str(client.create_container_from_config(body, name=container.name)["Id"])  # type: ignore[no-untyped-call]
            client.start(created)
            return created, int(client.inspect_container(created)["State"]["Pid"])

    def adopt(self, handle: Handle, plan: LaunchPlan, log: Path) -> None:
        """Follow a container that runs: its log from where ours ends, and its end."""

        def attempt() -> Sequence[Mapping[str, Any]]:
            client = self._connect(handle.daemon)
            with explained():
                found: list[Mapping[str, Any]] = client.containers(
                    filters={"id": handle.container, "status": "running"}
                )
                return found

        try:
            found = when_back(attempt)
        except AwayError as exc:
            raise DeploymentError(f"{plan.name}: {exc}") from exc
        if not found:
            raise DeploymentError(f"container {handle.container[:12]} has ended")
        self._since = float(found[0]["Created"])
        self._keeper = (handle.keeper, handle.keeper_started)
        self._follow(handle.container, handle.daemon, log, resume=True)

    def end_of(self, handle: Handle) -> int | None:  # noqa: ARG002
        """Return the reading end of a pipe; None before the first start."""
        return self._ending.readable if self._ending else None

    def poll(self, handle: Handle) -> Exit | None:  # noqa: ARG002
        """Return how the container ended, once its last words are in the log; None until then."""
        return self._ending.exit if self._ending else None

    def listens(self, handle: Handle, port: int) -> bool:  # noqa: ARG002
        """Return whether the container runs, which is enough.

        Docker gives a port to one container alone, and starts none that cannot have its ports.
        """
        return self._ending is not None and self._ending.exit is None

    def activity(self, handle: Handle) -> Activity | None:
        """Return Docker's numbers, with received bytes as read; None if the daemon does not answer with them."""
        with contextlib.suppress(DeploymentError, AwayError, KeyError):
            client = docker_daemon.client(handle.daemon)  # a client is one thread's, and this is the probes' thread
            with contextlib.closing(client), explained():
                stats = client.stats(handle.container, stream=False, one_shot=True)
            received = sum(int(network["rx_bytes"]) for network in stats.get("networks", {}).values())
            disks = stats["blkio_stats"]["io_service_bytes_recursive"] or ()
            read = sum(int(disk["value"]) for disk in disks if disk["op"].lower() == "read")
            return Activity(stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, read + received)
        return None

    def terminate(self, handle: Handle) -> None:
        """Send SIGTERM to the container; a container that is gone, or a daemon that is away, is no error."""
        import docker.errors

        with contextlib.suppress(DeploymentError, AwayError):
            client = self._connect(handle.daemon)
            with explained(), contextlib.suppress(docker.errors.NotFound):
                client.kill(handle.container, "SIGTERM")

    def sweep(self, plan: LaunchPlan, deadline_s: float = 5.0) -> tuple[str, ...]:
        """Remove every container of the deployment, end its keeper, and wait for the last words in the log."""
        container = _container(plan)
        left = self._remove(container.daemon, plan.run_dir, deadline_s, docker_daemon.BACK_S)
        self._end_keeper()
        if self._log:
            self._log.finish(_LOG_END_S)
        return left + remove_leftovers(plan, self._since)

    def saved_orders(self, handle: Handle) -> bytes | None:
        """Return the orders that the keeper holds; None if the container has ended, or has no keeper."""
        import docker.errors

        if handle.boot_id != boot_id():
            return None  # Docker starts none of them again
        running = False
        try:
            client = self._connect(handle.daemon)
            with explained(), contextlib.suppress(docker.errors.NotFound):
                running = bool(client.inspect_container(handle.container)["State"]["Running"])
        except AwayError as exc:
            raise DeploymentError(str(exc)) from exc
        return _kept_for(handle) if running else None

    def clear(self, run_dir: str, plan: Mapping[str, Any], deadline_s: float = 5.0) -> tuple[str, ...]:
        """Remove every container of the deployment, and end its keepers; does not wait for a daemon that is away."""
        container = plan.get("container")
        daemon = container.get("daemon") if isinstance(container, Mapping) else None
        # A record that does not say who has the container is of another version, or damaged.
        where = daemon if isinstance(daemon, str) else docker_daemon.address()
        left = self._remove(where, run_dir, deadline_s, away_s=0.0)
        keeper.end_all(run_dir)  # last: what is gone cannot make this take long
        return left

    # ------------------------------------------------------------------------------------------------ one container

    def _connect(self, daemon: str) -> APIClient:
        """Return the client, which is one for as long as its daemon lives."""
        if self._client is None:
            self._client = docker_daemon.client(daemon)
        else:
            docker_daemon.ping(daemon)
        return self._client

    def _end_keeper(self) -> None:
        keeper.end(*self._keeper)
        self._keeper = (0, 0)

    def _remove(self, daemon: str, run_dir: str, deadline_s: float, away_s: float) -> tuple[str, ...]:
        """Do what `_remove_all` does; wait for a daemon that is away, at most `away_s`."""

        def attempt() -> tuple[str, ...]:
            client = self._connect(daemon)
            with explained():
                return _remove_all(client, run_dir, deadline_s)

        try:
            return when_back(attempt, away_s)
        except (AwayError, DeploymentError) as exc:
            return (f"its container, which cannot be removed: {exc}",)

    def _follow(self, container: str, daemon: str, log: Path, resume: bool = False) -> None:
        """Write down what the container says, and notice its end, in threads of their own."""
        if self._ending:
            self._ending.forget()
        self._log = DockerLog(container, daemon, log, resume)
        self._ending = _Ending(container, daemon, self._log)


class _Ending:
    """A thread that notices the end of one container."""

    def __init__(self, container: str, daemon: str, log: DockerLog) -> None:
        self.exit: Exit | None = None
        self.readable, self._writable = os.pipe()  #: becomes readable at the end
        self._container = container
        self._daemon = daemon
        self._log = log
        self._forgotten = threading.Event()
        self._lock = threading.Lock()  # the pipe is open while it is held
        threading.Thread(target=self._watch, name="container's end", daemon=True).start()

    def forget(self) -> None:
        """Close the pipe, for nobody waits for the end any more."""
        with self._lock:
            self._forgotten.set()
            for descriptor in (self.readable, self._writable):
                os.close(descriptor)

    def _watch(self) -> None:
        ended = None
        while ended is None:
            try:
                ended = _wait(self._container, self._daemon)
            except AwayError:  # noqa: PERF203  (it may come back, and with live-restore its containers went on)
                if self._forgotten.wait(_AWAY_PERIOD_S):
                    return
            except DeploymentError:
                ended = Exit(UNSEEN)  # somebody has removed it
        self._log.finish(_LOG_END_S)
        with self._lock:
            if not self._forgotten.is_set():
                self.exit = ended
                os.write(self._writable, b"\0")


def _wait(container: str, daemon: str) -> Exit:
    """Block until `container` has ended. Raises `AwayError` if the daemon ends first."""
    client = docker_daemon.client(daemon, timeout_s=None)
    with contextlib.closing(client), explained():
        client.wait(container)
        state = client.inspect_container(container)["State"]
    code = int(state["ExitCode"])
    number = code - _SIGNALLED
    return Exit(-number if number in list(signal.Signals) else code, bool(state["OOMKilled"]))


def _remove_all(client: APIClient, run_dir: str, deadline_s: float) -> tuple[str, ...]:
    """Kill and remove every container of the deployment, with its anonymous volumes; return those that stay."""
    import docker.errors

    began = time.monotonic()
    while found := client.containers(all=True, filters={"label": f"{LABEL_FOLDER}={run_dir}"}):
        if time.monotonic() - began > deadline_s:
            return tuple(f"container {one['Id'][:12]} ({one['State']})" for one in found)
        for one in found:
            with contextlib.suppress(docker.errors.APIError):  # somebody else removes it too
                client.remove_container(one["Id"], force=True, v=True)
        time.sleep(_LOOK_PERIOD_S)
    return ()


def linked(model: str) -> tuple[Mount, ...]:
    """Return mounts for the files that relative links in the folder `model` lead to, at the same place inside.

    The Hugging Face hub's cache is links to files beside it. A link to another place of this machine is not followed.
    """
    found = []
    for folder, _, names in os.walk(model):
        for link in (Path(folder, name) for name in names if Path(folder, name).is_symlink()):
            inside = os.path.normpath(link.parent / link.readlink())
            if link.is_file() and not link.readlink().is_absolute() and not inside.startswith(f"{model}/"):
                found.append(Mount(str(link.resolve()), inside))
    return tuple(found)


def _kept_for(handle: Handle) -> bytes | None:
    """Return the orders that the keeper holds; None if the program was not to outlive its supervisor."""
    if handle.version < 3:
        raise NotAdoptableError(
            "its supervisor was killed, and its record is of an older rmlaunch, which kept its orders in the container "
            "where they are not believed; it has been ended, start it again"
        )
    if not handle.keeper:
        return None
    kept = keeper.read(handle.keeper)
    if kept is None or not is_the_same(handle.keeper, handle.keeper_started):  # looked at last: a pid may be reused
        raise NotAdoptableError(
            f"its supervisor was killed, and so was pid {handle.keeper}, which kept its orders for the next one; it "
            "has been ended, start it again"
        )
    return kept


def _container(plan: LaunchPlan) -> Container:
    if plan.container is None:
        raise DeploymentError(f"{plan.name}: its plan has no container")
    return plan.container


def _ticks(pid: int) -> int:
    """Return when the process started; 0 if it is not seen from here, as with a daemon in its own namespace."""
    try:
        return start_ticks(pid)
    except OSError:
        return 0
