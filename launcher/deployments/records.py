"""The deployments of a state folder, for commands that come later: found, asked, and adopted without a supervisor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import DeploymentError, RequestError
from launcher import registry
from launcher.at_once import at_once
from launcher.atomic import remove_partials
from launcher.deployments.connection import Connection, NoAnswerError
from launcher.deployments.holders import Holder, described, holders
from launcher.deployments.ledger import Claim, Ledger, in_words
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.import_path import load
from launcher.procfs import is_alive
from launcher.runtimes.base import NotAdoptableError
from launcher.suggest import unknown
from launcher.supervise import logs, protocol
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import PROTOCOL, NewerError, News, Orders, Record

_ASK_TIMEOUT_S = 2.0
_ADOPT_TIMEOUT_S = 30.0
_END_S = 8.0  #: for a launcher, to leave what it prepares
_KILLED_S = 10.0  #: for the kernel, to end a process and let go of its locks; and for its owner, to sweep


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as the ledger has it, with its last news."""

    name: str
    folder: Path
    live: bool  #: a supervisor has it
    news: News  #: the last that was said
    plan: Mapping[str, Any]  #: as `rmlaunch plan --json` prints it

    @property
    def there(self) -> bool:
        """Whether something of the deployment may run.

        It is being prepared, it serves, it could neither be adopted nor ended, or its end has left something.
        """
        return not self.news.phase.final or bool(self.news.leftovers)

    @property
    def listed(self) -> bool:
        """Whether plain `ps` shows the deployment: it may run, or it failed and nobody has removed its record."""
        return self.live or self.there or self.news.phase is Phase.FAILED

    @property
    def log(self) -> Path:
        """The path of its last start's log."""
        return Path(self.news.log) if self.news.log else logs.newest(self.folder / "logs")

    def find(self, *keys: str) -> object:
        """Look up in its plan what is below `keys`; None where the record, which may be damaged, does not have it."""
        found: object = self.plan
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def told(self, *keys: str) -> str:
        """Look up a text; a dash where there is none."""
        found = self.find(*keys)
        return found if isinstance(found, str) else "–"

    def connect(self) -> Connection:
        """Connect to its supervisor. Raises `RequestError` where there is none, `NoAnswerError` where it is silent."""
        if self.live:
            with contextlib.suppress(OSError):
                return Connection(self.folder)
        if not self.news.phase.final:
            raise RequestError(f"{self.name} is {self.news.phase.value} and cannot be asked now; see `rmlaunch ps`")
        raise self.not_running()

    def not_running(self) -> RequestError:
        """Return the error for whoever needs it running."""
        return RequestError(f"{self.name} is {self.news.phase.value}, not running; start it with `rmlaunch up -d`")


class Deployments:
    """The deployments of one state folder. Asking for them adopts those that serve without a supervisor."""

    def __init__(self, state: Path) -> None:
        self._ledger = Ledger(state)

    def all(self) -> list[Deployment]:
        """List them by name, ended ones too; their supervisors are asked at once, and one that is silent is UNKNOWN."""
        return at_once(_asked, self._found())

    def find(self, name: str) -> Deployment:
        """Return the deployment of that name. Raises `RequestError` with the names that there are."""
        found = {item.name: item for item in self._found()}
        if name not in found:
            raise not_found(name, found.values())
        return _asked(found[name])

    def look(self, folder: Path) -> Deployment:
        """Read and ask one, and adopt none: for who looks again and again."""
        return _asked(self._read(folder, ""))

    def wait_ended(self, name: str, timeout_s: float = 5.0) -> None:
        """Block until the name is free: a supervisor says its last word a moment before it ends.

        Raises `DeploymentError` where it is not after `timeout_s`.
        """
        if not self._is_free(name, timeout_s):
            holder = described(self._ledger.deployments / name / "lock")
            raise DeploymentError(f"{name} has stopped, but its name is still held after {timeout_s:g} s by {holder}")

    def remove(self, name: str) -> None:
        """Remove the record and the logs of a deployment that has ended. Raises `RequestError` where it may run."""
        with self._ledger.exclusive():
            folder = self._ledger.deployments / name
            item = self._read(folder, "")
            if self._ledger.is_coming_back(name):
                raise RequestError(f"{name} is being replaced by another; try again when that has ended")
            if item.live or item.there:
                left = ", ".join(item.news.leftovers)
                told = f"has left {left}" if left else f"is {item.news.phase.value}"
                raise RequestError(f"{name} {told}; `rmlaunch stop {name}` ends it first")
            self._ledger.remove(name)

    def _found(self) -> list[Deployment]:
        """Adopt those without a supervisor, and read what is on disk by then."""
        if not self._ledger.deployments.exists():
            return []
        adopted: list[Supervised] = []
        troubles: dict[str, str] = {}  #: a sentence each
        with self._ledger.exclusive():
            for folder in self._ledger.deployments.iterdir():
                remove_partials(folder)
            for folder in self._folders():
                try:
                    adopted += self._adopt_or_end(folder)
                except NewerError as exc:  # noqa: PERF203  (one's trouble is not the others')
                    troubles[folder.name] = str(exc)
                except Exception as exc:  # noqa: BLE001
                    troubles[folder.name] = _ends(folder.name, in_words(exc))
        deadline = time.monotonic() + _ADOPT_TIMEOUT_S
        for supervised in adopted:
            news = supervised.wait_settled(deadline - time.monotonic())
            supervised.detach()
            if news.phase.final:
                self._is_free(supervised.plan.name, 1.0)  # its process ends a moment after its last word
                name, why = supervised.plan.name, f"it cannot be adopted: {news.reason}; see {news.log}"
                troubles[name] = _ends(name, why)
        with self._ledger.exclusive():  # whoever claims a name writes its plan before it lets go
            return [self._read(folder, troubles.get(folder.name, "")) for folder in self._folders()]

    def _folders(self) -> list[Path]:
        return [path for path in sorted(self._ledger.deployments.iterdir())
                if _has_record(path) or self._ledger.is_live(path.name)]  # fmt: skip

    def _read(self, folder: Path, trouble: str) -> Deployment:
        live, said = self._ledger.is_live(folder.name), _said(folder)
        news = said or (News(Phase.PREPARING) if live else News(Phase.FAILED, "its state.json cannot be read"))
        if trouble and not live and (said is None or not said.phase.final):
            news = dataclasses.replace(news, phase=Phase.UNKNOWN, reason=trouble)
        if not live and not (folder / "run").exists():  # a sweep has ended since what was left by then
            news = dataclasses.replace(news, leftovers=())
        return Deployment(folder.name, folder, live, news, self._ledger.plan(folder.name))

    def _adopt_or_end(self, folder: Path) -> list[Supervised]:
        news = _said(folder)
        if news is None:
            if _has_record(folder):
                self._ledger.saved_orders(folder.name)  # raises where a newer release has written it
                self._end_unknown(folder)
            return []
        return self._adopt(folder, news) if not news.phase.final and self._is_orphan(folder.name, news) else []

    def _is_orphan(self, name: str, news: News) -> bool:
        """Return whether the supervisor is gone. The lock says so: its pid may belong to another process by now.

        One that was killed a moment ago may still hold the lock; `take_over` waits for that.
        """
        return not self._ledger.is_live(name) or not is_alive(news.supervisor or 0)

    def _end_unknown(self, folder: Path) -> None:
        """End what nobody could ever find again: its record cannot be read, and its supervisor is gone."""
        claim = self._ledger.take_over(folder.name, timeout_s=0.1)
        if claim is not None:  # else its supervisor, or who is starting one, knows better and will write again
            reason = "its state.json cannot be read, and it has no supervisor; what was left of it has been ended"
            self._end(claim, News(Phase.FAILED, reason))

    def _adopt(self, folder: Path, news: News) -> list[Supervised]:
        """Start a supervisor for a program that serves; end what is left of one that does not, and write that down."""
        claim = self._ledger.take_over(folder.name)
        if claim is None:  # another launch of its name has begun
            return []
        try:
            kept = self._ledger.saved_orders(folder.name)
            orders = None if kept is None else _own(folder, kept, self._ledger.record(folder.name))
        except NotAdoptableError as exc:
            self._end(claim, News(Phase.FAILED, str(exc), log=news.log))
            return []
        except NewerError:
            claim.lock.close()
            raise
        except DeploymentError as exc:
            claim.lock.close()
            raise DeploymentError(f"it has no supervisor, and it cannot be told whether it serves: {exc}") from exc
        except ValueError as exc:
            claim.lock.close()
            raise DeploymentError(f"it serves without a supervisor, and its orders are not understood: {exc}") from exc
        except BaseException:
            claim.lock.close()
            raise
        if orders is None:
            reason = "its supervisor was killed; its program has ended since, or was not to outlive it"
            self._end(claim, News(Phase.FAILED, reason, log=news.log))
            return []
        orders = dataclasses.replace(orders, adopt=news.program(), starts=news.starts, served=news.served)
        return [Supervised(Spawned(), orders, claim)]

    def put_down(self, name: str, *, now: bool) -> News:
        """End what no supervisor answers for: whoever holds its name, then all that is left; returns its last word.

        The holder is asked to end, by a TERM; with `now` it is killed. Raises `NoAnswerError` where it stays.
        """
        folder = self._ledger.deployments / name
        lock, before = folder / "lock", _said(folder)
        if not self._is_free(name, 0.3) and not now:  # not at once: it may be about to end
            _send(signal.SIGTERM, holders(lock))
            self._is_free(name, _END_S)
        with self._ledger.exclusive():  # nobody adopts it meanwhile
            if now:
                found = holders(lock)
                # An owner that is still there sweeps, and lets go, when the supervisor is gone.
                _send(signal.SIGKILL, [one for one in found if before and one.pid == before.supervisor] or found)
            claim = self._ledger.take_over(name, _KILLED_S if now else 0.5)
            if claim is None:
                raise NoAnswerError(
                    f"{name} is held by {described(lock)}, which does not end; `rmlaunch stop {name} --now` kills it"
                )
            said, why = _said(folder), "killed" if now else "ended"
            if said is None or not said.phase.final or said == before:  # else whoever had it has written its last word
                said = News(Phase.STOPPED, f"no supervisor answered for it, so it was {why}")
            return self._end(claim, said)

    def _is_free(self, name: str, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while live := self._ledger.is_live(name):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.005)
        return not live

    def _end(self, claim: Claim, last: News) -> News:
        """Leave nothing of a deployment that nobody can adopt, and write its last word."""
        with claim.lock:
            last = dataclasses.replace(last, leftovers=self._ledger.sweep(claim.folder.name) or last.leftovers)
            protocol.write_state(claim.folder, last)
        return last


def not_found(name: str, items: Iterable[Deployment]) -> RequestError:
    """The error for a name that nothing has; it names what is listed, not what was stopped long ago."""
    if listed := sorted(item.name for item in items if item.listed):
        return RequestError(unknown("deployment", name, listed))
    return RequestError(f"deployment {name!r} not found; none runs and none has failed")


def _has_record(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (protocol.RECORD, protocol.STATE))


def _ends(name: str, trouble: str) -> str:
    return f"{name}: {trouble}; `rmlaunch stop {name}` ends it"


def _own(folder: Path, kept: bytes, record: Record) -> Orders:
    """Return the orders that were `kept`, where they are of the deployment in `folder` as its own record has it.

    Raises `NotAdoptableError` where they are another's, `NewerError` where they are of a newer release and are not
    understood, and `ValueError` where nobody understands them.
    """
    orders = Orders.loads(kept, folder.name)
    runtime = record.runtime or orders.plan.runtime  # a record that is lost says nothing against them
    compared = {
        "folder": (orders.home.resolve(), folder.resolve()),
        "run_dir": (Path(orders.plan.run_dir).resolve(), folder.resolve() / "run"),
        "name": (orders.plan.name, folder.name),
        "runtime": (orders.plan.runtime, runtime),
    }
    for key, (found, wanted) in compared.items():
        if found != wanted:
            why = f"{key}={found!s}, where its record has {wanted!s}"
            if orders.protocol > PROTOCOL:
                raise NewerError(folder.name, orders.protocol, f"its orders have {why}")
            raise NotAdoptableError(
                f"its supervisor was killed, and the orders that were kept for the next one are not its own ({why}); "
                "it has been ended, start it again"
            )
    # Where a plugin is may have changed between releases: ours are asked, and no path is imported because it was kept.
    return dataclasses.replace(
        orders, runtime=registry.import_path("runtime", runtime), device=_importable(orders.device)
    )


def _importable(device: str) -> str:
    """Return the path of the plugin; empty, as where its memory tells nothing, where this release does not have it."""
    try:
        if device:
            load(device)()
    except (ImportError, AttributeError, ValueError):
        return ""
    return device


def _said(folder: Path) -> News | None:
    """Read the state on disk; None where nothing, or nothing that can be read, is there."""
    try:
        return protocol.read_state(folder)
    except (OSError, ValueError):
        return None


def _asked(item: Deployment) -> Deployment:
    """Return `item` with its supervisor's news; as it was read where there is no supervisor, or none any more."""
    news = item.news
    if item.live:
        try:
            with Connection(item.folder, _ASK_TIMEOUT_S) as connection:
                news = connection.status()
        except NoAnswerError as exc:
            news = dataclasses.replace(news, phase=Phase.UNKNOWN, reason=str(exc))
        except (OSError, DeploymentError):
            pass
    return dataclasses.replace(item, news=news)


def _send(number: signal.Signals, to: Sequence[Holder]) -> None:
    for holder in to:
        holder.send(number)
