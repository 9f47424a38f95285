"""The reload of settings while the gateway runs: from its file, or from configs that have changed."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.base import ConfigError
from launcher import dataclass_json
from launcher.atomic import version, write_text
from launcher.config.gateway import RENAMED
from launcher.gateway.settings import Settings, check
from launcher.paths import shipped, user_config

log = logging.getLogger(__name__)

FILE = "settings.json"  #: in the run folder of the gateway's deployment
SOCKET = "settings.sock"  #: beside that file: new settings are handed over here
PERIOD_S = 0.5
_COMPOSE_TIMEOUT_S = 60.0
_AGAIN_S = 5.0  #: seconds between two tries to compose configs that could not be composed
_COMPOSE = "import sys; sys.path[:] = filter(None, sys.path); from launcher.gateway.compose_process import main; main()"


@dataclass
class ComposedRequest:
    """A gateway's command line, to be composed again, and the settings that it was composed to last."""

    overrides: list[str]  #: the words of the command line, with hashes in place of keys
    config_dir: str | None
    settings: Settings
    marks: dict[str, list[int]] = field(default_factory=dict)  #: size and time of each config file that played a part

    def dumps(self) -> str:
        """Return it as JSON, for `loads`."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def loads(cls, text: str) -> ComposedRequest:
        """Read what `dumps` wrote; the release before, whose gateway may still run, had other names for two things."""
        data = json.loads(text)
        if isinstance(data, dict):
            data["overrides"] = [_with_present_key(item) for item in data.get("overrides", ())]
            settings = data.get("settings")
            if isinstance(settings, dict) and "of_deployments" in settings:
                settings.setdefault("deployment_defaults", settings.pop("of_deployments"))
        return dataclass_json.load(cls, data)


def _with_present_key(override: str) -> str:
    key = override.lstrip("+").partition("=")[0]
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return override.replace(old, new, 1)
    return override


def marks(config_dir: str | None) -> dict[str, list[int]]:
    """Return the size, and the time of the last change in ns, of every file that a gateway's config may come from."""
    folders = [shipped("conf"), user_config(), *([Path(config_dir)] if config_dir else [])]
    files = [file for folder in folders for file in (folder / "gateway.yaml", *(folder / "gateway").glob("*.yaml"))]
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        found[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return found


@dataclass(frozen=True, slots=True)
class _Failed:
    since: float
    marks: dict[str, list[int]]
    why: str


class Reloader:
    """Watches a gateway's file and its configs, in a thread of its own.

    `use` is called with settings that differ from the last ones, from whichever thread has found them. Settings are
    used first and written down after: a disk that is full keeps no key alive.
    """

    def __init__(self, file: Path, use: Callable[[Settings], object]) -> None:
        self._file = file
        self._use = use
        self._asked = ComposedRequest.loads(file.read_text())
        self._used = self._asked.settings
        self._mark = version(file)
        self._unsaved = ""  #: why the last settings are not on the disk; empty where they are
        self._failed: _Failed | None = None  #: the last try to compose; None where it succeeded
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    @property
    def settings(self) -> Settings:
        """The settings that are in use."""
        return self._used

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch, soon; waits for nothing."""
        self._ended = True
        self._wanted.set()

    def now(self) -> None:
        """Compose at once, whether a file has changed or not."""
        self._asked.marks = {}
        self._failed = None
        self._wanted.set()

    def hand_over(self, text: str) -> dict[str, Any]:
        """Use what `ComposedRequest.dumps` wrote.

        Returns what is different now (`changes`) and why it could not be written down (`unsaved`, empty where it
        could), or what is wrong with it (`error`).
        """
        with self._lock:
            asked = ComposedRequest.loads(text)
            try:
                changes = self._take(asked)
            except ConfigError as exc:
                return {"error": str(exc)}
            return {"changes": changes, "unsaved": self._unsaved}

    def look(self) -> None:
        """Look once whether the file or a config has changed, and take what it amounts to then."""
        with self._lock:
            if (mark := version(self._file)) not in (self._mark, None):
                asked = ComposedRequest.loads(self._file.read_text())
                self._mark = mark
                self._take_from_disk(asked)
            elif (found := marks(self._asked.config_dir)) != self._asked.marks:
                self._compose(found)
            elif self._unsaved:
                self._save()

    def _run(self) -> None:
        while not self._ended:
            self._wanted.wait(PERIOD_S)
            self._wanted.clear()
            try:
                self.look()
            except Exception:
                log.exception("the settings cannot be read again; the last ones stay")

    def _compose(self, found: dict[str, list[int]]) -> None:
        """Take what the configs amount to; `found` are their marks.

        They count as taken only when they were: what goes wrong may be no fault of theirs, and is tried again.
        """
        last = self._failed
        if last and last.marks == found and time.monotonic() - last.since < _AGAIN_S:
            return
        made, why = _composed(self._asked)
        if made is None:
            self._failed = _Failed(time.monotonic(), found, why)
            if last is None or last.why != why:
                log.error("the changed configs are not used, and the last ones stay: %s", why)
            return
        try:
            self._take_from_disk(dataclasses.replace(self._asked, settings=made, marks=found))
        except Exception as exc:
            self._failed = _Failed(time.monotonic(), found, str(exc))
            raise
        self._failed = None

    def _take_from_disk(self, asked: ComposedRequest) -> None:
        """Take settings from a file that somebody has changed: the log says what is wrong with them."""
        new, old = asked.settings, self._used
        if (new.host, new.port) != (old.host, old.port):
            log.warning("gateway.host and gateway.port count from the next start on; --replace starts it anew")
            asked = dataclasses.replace(asked, settings=dataclasses.replace(new, host=old.host, port=old.port))
        try:
            self._take(asked)
        except ConfigError as exc:  # such as keys that are gone, on an address that needs them
            log.error("the changed configs are not used, and the last ones stay: %s", exc)
            self._asked.marks = asked.marks

    def _take(self, asked: ComposedRequest) -> list[str]:
        """Use `asked`, and return what is different by that. Raises `ConfigError` for what does not go together."""
        new, old = asked.settings, self._used
        if (new.host, new.port) != (old.host, old.port):
            raise ConfigError(
                f"it listens on {old.host} port {old.port}; --replace starts it anew on {new.host} port {new.port}"
            )
        check(new)
        changes = differences(old, new)
        if new != old:
            self._use(new)
            log.info("new settings: %s", "; ".join(changes))
        self._asked, self._used = asked, new
        self._save()
        return changes

    def _save(self) -> None:
        """Write down what is in use, so that a gateway that is started again begins with it."""
        try:
            write_text(self._file, self._asked.dumps())
        except OSError as exc:
            if not self._unsaved:
                log.warning("the new settings are used, and cannot be written down, which is tried again: %s", exc)
            self._unsaved = str(exc)
            return
        self._unsaved = ""
        self._mark = version(self._file)


def _composed(asked: ComposedRequest) -> tuple[Settings | None, str]:
    """Return the settings that the configs amount to now; or None, and why."""
    words = json.dumps({"overrides": asked.overrides, "config_dir": asked.config_dir})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COMPOSE], input=words, capture_output=True, text=True, timeout=_COMPOSE_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        return None, str(exc)
    if done.returncode != 0:
        return None, done.stderr.strip()[-2000:]
    return dataclass_json.load(Settings, json.loads(done.stdout)), ""


def differences(old: Settings, new: Settings) -> list[str]:
    """Return what is different, in words, without any hash of a key."""
    said = []
    for name in (it.name for it in dataclasses.fields(Settings)):
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name in ("routes", "keys"):
            was, now = ({item.name: item for item in items} for items in (before, after))
            said += [f"{name[:-1]} {key} added" for key in now.keys() - was.keys()]
            said += [f"{name[:-1]} {key} removed" for key in was.keys() - now.keys()]
            said += [f"{name[:-1]} {key} changed" for key in now.keys() & was.keys() if now[key] != was[key]]
        else:
            said.append(f"{name} changed")
    return sorted(said)
