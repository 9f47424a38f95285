"""Settings that change while the gateway runs: its file, or the configs that it was composed from."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engines.base import ConfigError
from launcher import structs
from launcher.atomic import version, write_text
from launcher.gateway.settings import Settings, check
from launcher.paths import shipped, user_config

log = logging.getLogger(__name__)

FILE = "settings.json"  #: in the run folder of the gateway's deployment
PERIOD_S = 0.5
_COMPOSE_TIMEOUT_S = 60.0
_COMPOSE = "import sys; sys.path[:] = filter(None, sys.path); from launcher.gateway.composing import main; main()"


@dataclass
class Asked:
    """What the gateway was asked for: to be composed again, and as it was composed last."""

    overrides: list[str]  #: keys in them are hashes
    config_dir: str | None
    settings: Settings
    marks: dict[str, list[int]] = field(default_factory=dict)  #: the config files that played a part

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def loads(cls, text: str) -> Asked:
        return structs.load(cls, json.loads(text))


def marks(config_dir: str | None) -> dict[str, list[int]]:
    """Of every file that a composed gateway config may come from: its size and when it was changed."""
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


class Reloader:
    """`use` is called from its thread, with settings that differ from the last ones."""

    def __init__(self, file: Path, use: Callable[[Settings], object]) -> None:
        self._file = file
        self._use = use
        self._asked = Asked.loads(file.read_text())
        self._mark = version(file)
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    @property
    def settings(self) -> Settings:
        return self._asked.settings

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended = True
        self._wanted.set()

    def now(self) -> None:
        """Compose at once, whether a file has changed or not."""
        self._asked.marks = {}
        self._wanted.set()

    def look(self) -> None:
        """Whether anything has changed, and what it amounts to then."""
        if (mark := version(self._file)) not in (self._mark, None):
            self._mark = mark
            before, self._asked = self._asked, Asked.loads(self._file.read_text())
            self._take(before.settings)
        elif (found := marks(self._asked.config_dir)) != self._asked.marks:
            self._asked.marks = found
            if (made := _composed(self._asked)) is not None:
                before = dataclasses.replace(self._asked)
                self._asked.settings = made
                self._take(before.settings)

    def _run(self) -> None:
        while not self._ended:
            self._wanted.wait(PERIOD_S)
            self._wanted.clear()
            try:
                self.look()
            except Exception:
                log.exception("the settings cannot be read again; the last ones stay")

    def _take(self, old: Settings) -> None:
        new = self._asked.settings
        if (new.host, new.port) != (old.host, old.port):
            log.warning("gateway.host and gateway.port count from the next start on; --replace starts it anew")
            new = self._asked.settings = dataclasses.replace(new, host=old.host, port=old.port)
        try:
            check(new)
        except ConfigError as exc:  # such as keys that are gone, on an address that needs them
            log.error("the changed configs are not used, and the last ones stay: %s", exc)
            self._asked.settings = old
            return
        if new == old:
            return
        write_text(self._file, self._asked.dumps())  # so that a gateway that is started again begins with them
        self._mark = version(self._file)
        log.info("new settings: %s", "; ".join(differences(old, new)))
        self._use(new)


def _composed(asked: Asked) -> Settings | None:
    """The settings that the configs amount to now; None, and a line in the log, where they are wrong."""
    words = json.dumps({"overrides": asked.overrides, "config_dir": asked.config_dir})
    done = subprocess.run(
        [sys.executable, "-c", _COMPOSE], input=words, capture_output=True, text=True, timeout=_COMPOSE_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        log.error("the changed configs are not used, and the last ones stay: %s", done.stderr.strip()[-2000:])
        return None
    return structs.load(Settings, json.loads(done.stdout))


def differences(old: Settings, new: Settings) -> list[str]:
    """What is different, in words; no hashes of keys in them."""
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
