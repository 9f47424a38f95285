"""The record on disk of what is deployed: one folder per name, which its live owner holds locked.

    <state>/ledger.lock                 held while a name and ports are being chosen
    <state>/deployments/<name>/lock     held (flock) by the launcher, then by the supervisor, for as long as it lives
    <state>/deployments/<name>/replacing.lock   held while the deployment is stopped to be replaced by another
    <state>/deployments/<name>/plan.json, state.json, control.sock, tmp, logs/, run/

A lock dies with its last holder, so a deployment whose owner was killed is seen as gone without looking at pids. One
that is detached may serve all the same, and is adopted (launcher/deployments/records.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from engines.base import ConfigError, DeploymentError, ResourceError, RmLaunchError
from engines.files import opened
from launcher import trees
from launcher.atomic import open_lock
from launcher.deployments import holders, ports
from launcher.runtimes.base import NotAdoptableError, Runtime
from launcher.supervise import protocol
from launcher.supervise.protocol import PROTOCOL, NewerError, Record

log = logging.getLogger(__name__)

_LOCK_SILENT_S = 1.0  #: a launch that looks at the machine holds it for about that long
_LOCK_LIMIT_S = 60.0
_COMES_BACK = "replacing.lock"
_REMOVED = ".removed-"
_NAME_LIMIT = 60  #: a Unix socket's path has 107 bytes


class NameTakenError(ResourceError):
    """A running deployment has the name."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that is ours: while `lock` is open here or in a child, nobody else gets it."""

    folder: Path
    lock: TextIO

    def release(self, left: Sequence[str] = ()) -> None:
        """Let the name go and remove what the plan put there; logs and the last state stay to be read.

        With something `left`, its run folder stays too: by it the next command finds it.
        """
        if not left:
            trees.remove(self.folder / "run")
        self.lock.close()


@dataclass(frozen=True, slots=True)
class _Held:
    name: str
    ports: tuple[int, ...]
    kind: str  #: of its devices
    devices: tuple[int, ...]


class Ledger:
    """The record of one state folder.

    `replacing` is a live deployment whose name, ports and devices count as free, to plan what would be in its place.
    """

    def __init__(self, state: Path, replacing: str | None = None) -> None:
        self.deployments = state / "deployments"
        self._state = state
        self._replacing = replacing

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else chooses names or ports while the block runs.

        Raises `DeploymentError` where somebody holds them for too long; says before whom it waits for.
        """
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_lock(self._state / "ledger.lock") as lock:
            _wait_for(lock, self._state / "ledger.lock")
            yield

    def free_name(self, wanted: str | None, derived: str) -> str:
        """`wanted` if it is free; else `derived`, with a number where that is taken. Raises `ResourceError`."""
        if wanted:
            if wanted != self._replacing and self.is_live(wanted):
                raise NameTakenError(f"name={wanted!r} is taken by a running deployment; choose another or stop it")
            return wanted
        name, number = derived[:_NAME_LIMIT], 1
        while self.is_live(name):
            number += 1
            name = f"{derived[:_NAME_LIMIT]}-{number}"
        return name

    def is_live(self, name: str) -> bool:
        """Return whether the name's lock is held: by its launcher, or by its supervisor."""
        return _is_locked(self.deployments / name / "lock")

    def is_coming_back(self, name: str) -> bool:
        """Return whether the deployment is being stopped by somebody who starts another in its place."""
        return _is_locked(self.deployments / name / _COMES_BACK)

    @contextmanager
    def coming_back(self, name: str) -> Iterator[None]:
        """While the block runs, whoever looks knows that what is stopped is to be followed by another of its name.

        Raises `DeploymentError` where somebody else replaces it for too long; says before whom it waits for.
        """
        path = self.deployments / name / _COMES_BACK
        with open_lock(path) as lock:
            _wait_for(lock, path)
            yield

    def claim(self, name: str, ports: tuple[int, ...], plan: Mapping[str, object]) -> Claim:
        """Take `name` and `ports`; call inside `exclusive`. `plan` is written down as it is: mask it first.

        Raises `DeploymentError` where something of its last start cannot be ended, or is not understood.
        """
        folder = self.deployments / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open_lock(folder / "lock")
        try:
            _wait_for(lock, folder / "lock")  # somebody may be asking `is_live` at this moment, and lets go at once
            self._sweep_dead()
            self._refuse_newer(name)
            if left := self.sweep(name):  # by its record it is found, which another launch would write over
                raise DeploymentError(
                    f"{name}: of its last start there is still {', '.join(left)}; `rmlaunch stop {name}` tries "
                    "again to end it, or choose another name"
                )
            (folder / protocol.STATE).unlink(missing_ok=True)  # it is about the last one
            protocol.write_record(folder, Record(ports, plan))
        except BaseException:
            lock.close()
            raise
        return Claim(folder, lock)

    def take_over(self, name: str, timeout_s: float = 0.5) -> Claim | None:
        """The lock of a deployment whose supervisor is gone; call inside `exclusive`.

        A supervisor that was killed holds it until the last of its threads has ended. None where somebody else has it.
        """
        lock = open_lock(self.deployments / name / "lock")
        deadline = time.monotonic() + timeout_s
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                lock.close()
                return None
            time.sleep(0.005)
        return Claim(self.deployments / name, lock)

    def remove(self, name: str) -> None:
        """Remove the record and the logs of `name`, which has ended; call inside `exclusive`.

        The record goes whole, whoever is killed when: its folder is moved out first.
        """
        for stale in self._state.glob(f"{_REMOVED}*"):
            trees.remove(stale)
        aside = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=self._state))
        (self.deployments / name).rename(aside / "record")
        trees.remove(aside)

    def _sweep_dead(self) -> None:
        """End what deployments left whose launcher and supervisor were both killed, and that nobody can adopt."""
        for run in self.deployments.glob("*/run"):
            try:
                if not self.is_live(run.parent.name) and not self._may_serve(run.parent.name):
                    self.sweep(run.parent.name)
            except Exception as exc:  # noqa: BLE001, PERF203  (its trouble is no reason to refuse another)
                log.warning("what is left of %s cannot be ended: %s", run.parent.name, in_words(exc))

    def _refuse_newer(self, name: str) -> None:
        """Raise `NameTakenError` where `name` is of a newer release and may serve, which is not ours to end unasked."""
        try:
            serves = self.saved_orders(name) is not None
            newer = serves and protocol.read_state(self.deployments / name).protocol > PROTOCOL
        except NewerError as exc:
            raise NameTakenError(str(exc)) from exc
        except Exception:  # noqa: BLE001  (whatever else it is: whoever launches that name replaces it)
            return
        if newer:
            raise NameTakenError(f"name={name!r} is taken by a deployment of a newer rmlaunch, which serves without a "
                                 "supervisor; `rmlaunch ps` adopts it, or says why it cannot")  # fmt: skip

    def sweep(self, name: str) -> tuple[str, ...]:
        """End everything that is left of `name`, and remove its folder; returns what is still there, in words."""
        run = self.deployments / name / "run"
        if not run.exists():
            return ()
        left = self._sweeper(name).clear(str(run), self.plan(name))
        if not left:
            trees.remove(run)
        return left

    def saved_orders(self, name: str) -> bytes | None:
        """Return the orders that the program of a detached deployment keeps, where it serves without a supervisor.

        None where they were never kept, or the program has ended. Raises `NotAdoptableError` where they are lost,
        `NewerError` where a newer release keeps them in another way, and another `DeploymentError` where it cannot be
        told now.
        """
        try:
            news = protocol.read_state(self.deployments / name)
        except OSError:
            return None
        except ValueError as exc:
            if (number := self.record(name).protocol) > PROTOCOL:
                raise NewerError(name, number, f"its {protocol.STATE} is not understood: {exc}") from exc
            return None
        try:
            handle = news.program()
            kept = self._runtime(name).saved_orders(handle) if handle else None
        except ValueError as exc:  # of another version: it may serve all the same
            if news.protocol > PROTOCOL:
                raise NewerError(name, news.protocol, f"the handle of its program is not understood: {exc}") from exc
            raise DeploymentError(f"the handle of its program is not understood: {exc}") from exc
        if kept is None and news.protocol > PROTOCOL and news.detached and news.may_run:
            raise NewerError(name, news.protocol, "the orders that it keeps for its next supervisor are not found")
        return kept

    def _may_serve(self, name: str) -> bool:
        try:
            return self.saved_orders(name) is not None
        except NotAdoptableError:
            return False
        except Exception:  # noqa: BLE001  (it cannot be told; its trouble is no reason to refuse another)
            return True

    def _runtime(self, name: str) -> Runtime:
        """Make the runtime of its plan. Raises `DeploymentError` where that is not installed."""
        from launcher import registry

        record = self.record(name)
        try:
            return registry.runtime(record.runtime or "process")
        except ConfigError as exc:  # a plugin that is not installed any more, or one of a newer release
            if record.protocol > PROTOCOL:
                raise NewerError(name, record.protocol, str(exc)) from exc
            raise DeploymentError(f"{name}: {exc}") from exc

    def _sweeper(self, name: str) -> Runtime:
        """Make the runtime that ends what is left: of a newer release's own one, the processes here are known."""
        try:
            return self._runtime(name)
        except NewerError:
            from launcher.runtimes.process import ProcessRuntime

            return ProcessRuntime()

    def record(self, name: str) -> Record:
        """Read what was written down of its plan; empty where that cannot be read."""
        try:
            return protocol.read_record(self.deployments / name)
        except (OSError, ValueError):
            return Record()

    def plan(self, name: str) -> Mapping[str, Any]:
        """Return the plan as it was written down; empty where it cannot be read."""
        return self.record(name).plan

    def held_ports(self) -> dict[int, str]:
        """The ports of running deployments and whose they are, whether their engines listen yet or not."""
        return {port: held.name for held in self._held() for port in held.ports}

    def held_devices(self, kind: str) -> dict[int, str]:
        """The devices of `kind` that running deployments have, and whose they are."""
        return {number: held.name for held in self._held() if held.kind == kind for number in held.devices}

    def kept_devices(self, kind: str) -> tuple[int, ...]:
        """The devices of `kind` of the deployment that is to be replaced: what is in its place keeps them."""
        held = self._held_by(self._replacing) if self._replacing else None
        return held.devices if held and held.kind == kind else ()

    def is_replaced(self, pid: int) -> bool:
        """Return whether the process `pid` belongs to the deployment that is to be replaced."""
        if self._replacing is None:
            return False
        from launcher.runtimes.process import belongs

        return belongs(pid, str(self.deployments / self._replacing / "run"))

    def _held(self) -> Iterator[_Held]:
        """Yield the ports and devices held by running deployments, adoptable orphans included."""
        for name in self.running():
            if name != self._replacing:
                yield self._held_by(name)

    def _held_by(self, name: str) -> _Held:
        record = self.record(name)
        return _Held(name, record.ports, *record.devices)

    def running(self) -> list[str]:
        """The names of those that are being prepared or that run, with a supervisor or without."""
        names = sorted(folder.name for folder in self.deployments.glob("*"))
        return [name for name in names if self.is_live(name) or self._may_serve(name)]

    def choose_ports(self, host: str, wanted: Mapping[str, int | None]) -> tuple[int, ...]:
        """A port for each key of `wanted`: the given one, or the first free ones from `ports.first` up.

        Raises `ResourceError` that names the key and who has the port.
        """
        if self._replacing:
            return self._ports_of(self._replacing, wanted)
        held = self.held_ports()
        for key, port in wanted.items():
            if port is not None and (port in held or not ports.is_free(host, port)):
                holder = f"deployment {held[port]!r}" if port in held else ports.listener(port)
                raise ResourceError(f"{key}={port} is in use by {holder}; choose another or leave {key} out")
        given = {port for port in wanted.values() if port is not None}
        chosen: list[int] = []
        candidate = first = ports.first()
        for port in wanted.values():
            if port is None:
                while candidate in held or candidate in given or not ports.is_free(host, candidate):
                    candidate += 1
                    if candidate > ports.LAST:
                        raise ResourceError(f"no port from {first} to {ports.LAST} is free on {host}")
                port, candidate = candidate, candidate + 1
            chosen.append(port)
        return tuple(chosen)

    def _ports_of(self, name: str, wanted: Mapping[str, int | None]) -> tuple[int, ...]:
        """Return the ports that `name` has, or those of `wanted` where it names them."""
        have = dict(zip(wanted, self.record(name).ports, strict=False))
        return tuple(port if port is not None else have.get(key, 0) for key, port in wanted.items())


def in_words(trouble: Exception) -> str:
    """Return one sentence for the trouble of one deployment; a bug has its type with it."""
    expected = isinstance(trouble, (RmLaunchError, OSError))
    return str(trouble) if expected else f"{type(trouble).__name__}: {trouble}"


def _wait_for(lock: TextIO, path: Path) -> None:
    """Block until `lock`, which is `path`, is ours; say after a second whom that waits for."""
    began, told = time.monotonic(), False
    while not _try_lock(lock):
        waited = time.monotonic() - began
        if waited > _LOCK_LIMIT_S:
            holder = holders.described(path)
            raise DeploymentError(
                f"{path} has been held for {_LOCK_LIMIT_S:g} s by {holder}; end that, or try again later"
            )
        if waited > _LOCK_SILENT_S and not told:
            log.warning("waiting for %s, which holds %s", holders.described(path), path)
            told = True
        time.sleep(0.005)


def _is_locked(file: Path) -> bool:
    try:
        with opened(os.fspath(file)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or something in its place that nobody can have
        return False
    return False


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
