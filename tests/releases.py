"""What tests of the protocol share: records of other releases, and a program that such a release left behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.procfs import boot_id, start_ticks
from launcher.runtimes.keeper import in_memory
from launcher.runtimes.process import ProcessRuntime
from tests.supervision import free_port, wait_for

FAKES = Path(__file__).parent / "fakes"
RECORDED = Path(__file__).parent / "supervise/release_before"
NAME = "fake"  #: of the deployment that was recorded
NEWER = 7  #: a protocol that is not ours


@dataclass(frozen=True, slots=True)
class Before:
    """The records of the release before, as that would have written them here."""

    state: Path
    port: int
    pid: int = 1
    started: int = 1
    supervisor: int = 1

    def text(self, file: str) -> str:
        text = (RECORDED / file).read_text()
        for mark, value in {
            "@STATE@": self.state, "@PYTHON@": sys.executable, "@PREFIX@": sys.prefix, "@FAKES@": FAKES,
            "@PORT@": self.port, "@PID@": self.pid, "@STARTED@": self.started, "@BOOT@": boot_id(),
            "@SUPERVISOR@": self.supervisor,
        }.items():  # fmt: skip
            text = text.replace(mark, str(value))
        return text

    def data(self, file: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.text(file))
        return data

    def command(self) -> list[str]:
        words: list[str] = self.data("orders.json")["plan"]["argv"]
        return words


@dataclass(frozen=True, slots=True)
class Orphan:
    folder: Path
    pid: int
    port: int


@contextlib.contextmanager
def orphaned(
    state: Path,
    orders: Mapping[str, Any] | None = None,
    news: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    *,
    keeps: bool = True,
) -> Iterator[Orphan]:
    """A deployment of the release before whose supervisor was killed and whose program serves; each record of it with
    the changes given. A value of `...` takes a key away; without `keeps` the program has no orders."""
    before = Before(state, free_port())
    folder = state / "deployments" / NAME
    (folder / "run").mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "logs/000001.log").touch()
    state.chmod(0o700)
    kept = json.dumps(changed(before.data("orders.json"), orders)).encode() if keeps else None
    with in_memory(kept) as descriptors:
        program = subprocess.Popen(
            before.command(),
            cwd=folder / "run",
            env={**os.environ, "RMLAUNCH_DEPLOYMENT": str(folder / "run")},
            pass_fds=descriptors,
            start_new_session=True,
        )
    before = Before(state, before.port, program.pid, start_ticks(program.pid))
    (folder / "plan.json").write_text(json.dumps(changed(before.data("plan.json"), record)))
    (folder / "state.json").write_text(json.dumps(changed(before.data("state.json"), news)))
    try:
        wait_for(lambda: serves(before.port))
        yield Orphan(folder, program.pid, before.port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, 9)
        program.wait(10)
        ProcessRuntime().clear(str(folder / "run"), {})


def changed(data: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """`data` with `changes`: a mapping changes what is below its key, and `...` takes a key away."""
    result = dict(data)
    for key, value in (changes or {}).items():
        if value is ...:
            del result[key]
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = changed(result[key], value)
        else:
            result[key] = value
    return result


def serves(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
