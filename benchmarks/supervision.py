"""Restarts, memory, idle cost and leftovers, beside supervisord and circus in the same run; and 50 deployments at once.

All three supervise the same program (benchmarks/supervision_parties.py) at the same time, and keep their own defaults
but for this: ours forgets a crash after 1 s, so that each is a first one; the peers stop groups and children too, and
circus looks every second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.supervision_parties import (
    Circus,
    Foreground,
    Ours,
    Owner,
    Party,
    Supervisord,
    deploy,
    marked,
    scratch,
    start_bystanders,
    wait_for,
    write_program,
)
from benchmarks.table import percentile, show
from launcher.deployments.supervised import Supervised
from tests.supervision import free_port

CRASHES = 15
IDLE_S = 60.0
SETTLED_S = 10.0
LEFT_AFTER_S = 3.0
MANY = 50
ROUNDS = 5
BYSTANDERS = 500
_BATCH = 5  #: started at once: Python's start is what takes the time
_COMMAND_S = 120.0
_GONE_S = 1.0  #: a supervisor says that it has stopped a moment before it ends


def main() -> None:
    _crashes()
    _idle()
    _leftovers()
    _many()


def _crashes() -> None:
    """From kill -9 to the first line of the program's next start, each time the first crash after serving a while."""
    with scratch() as folder, ExitStack() as stack:
        ours = Ours(folder / "ours", stable_s=1.0)
        parties: list[Party] = [ours, Supervisord(folder / "supervisord"), Circus(folder / "circus")]
        for party in parties:
            stack.enter_context(party)
        waits = {party.name: values for party, values in zip(parties, _restarts_ms(parties), strict=True)}
        start_bystanders(BYSTANDERS)
        (waits[f"rmlaunch, beside {BYSTANDERS} other processes"],) = _restarts_ms([ours])
    rows = [[name, *(f"{value:.1f}" for value in _spread(values))] for name, values in waits.items()]
    show(
        f"kill -9 of the program → it is started again, {CRASHES} × (at most 25 ms)",
        ["", "p50 ms", "p90 ms", "most ms"],
        rows,
    )


def _restarts_ms(parties: Sequence[Party]) -> list[list[float]]:
    """Return the milliseconds of each restart, a list for each party; the parties take turns."""
    waits: list[list[float]] = [[] for _ in parties]
    for _ in range(CRASHES):
        for party in parties:
            party.wait_ready(len(party.starts()))
        # Longer than supervisord's startsecs; at random, so that no party's own clock is met each time.
        time.sleep(random.uniform(1.2, 2.2))  # noqa: S311
        for party, values in zip(parties, waits, strict=True):
            values.append(_restart_ms(party))
    return waits


def _restart_ms(party: Party) -> float:
    before = party.starts()
    killed = time.time_ns()
    os.kill(before[-1][0], signal.SIGKILL)
    wait_for(lambda: len(party.starts()) > len(before), f"{party.name} did not start it again")
    return (party.starts()[-1][1] - killed) / 1e6


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return percentile(values, 0.5), percentile(values, 0.9), max(values)


def _idle() -> None:
    """Memory after 10 s of serving, and CPU in the minute after that."""
    with scratch() as folder, ExitStack() as stack:
        parties: list[Party] = [Ours(folder / "ours"), Supervisord(folder / "supervisord"), Circus(folder / "circus")]
        for party in parties:
            stack.enter_context(party)
        time.sleep(SETTLED_S)
        memory = [_memory_mb(party.supervisor) for party in parties]
        supervisors = [[party.supervisor] for party in parties]
        alone = _cpu_percent(supervisors)
        start_bystanders(BYSTANDERS)
        beside = _cpu_percent(supervisors)
    rows = [
        [party.name, *(f"{mb:.1f}" for mb in sizes), f"{share:.3f}", f"{crowded:.3f}"]
        for party, sizes, share, crowded in zip(parties, memory, alone, beside, strict=True)
    ]
    show(
        f"A supervisor of one deployment that serves, idle for {IDLE_S:.0f} s",
        ["", "RSS MB (at most 30)", "PSS MB", "CPU, % of a core (at most 0.2)", f"beside {BYSTANDERS} other processes"],
        rows,
    )


def _memory_mb(pid: int) -> tuple[float, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {words[0]: int(words[1]) for words in map(str.split, lines)}
    return kb["Rss:"] * 1024 / 1e6, kb["Pss:"] * 1024 / 1e6


def _cpu_percent(groups: Sequence[Iterable[int]]) -> list[float]:
    """Return the percentage of one core that each group of processes takes during `IDLE_S`."""
    before, began = [sum(map(_cpu_s, pids)) for pids in groups], time.monotonic()
    time.sleep(IDLE_S)
    after, took = [sum(map(_cpu_s, pids)) for pids in groups], time.monotonic() - began
    return [(end - start) / took * 100 for start, end in zip(before, after, strict=True)]


def _cpu_s(pid: int) -> float:
    """Return the processor time of all threads, ended ones too; /proc/PID/stat has ticks of 10 ms, this nanoseconds."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)


def _leftovers() -> None:
    """Show how much still runs of a program with a grandchild in a session of its own."""
    kinds: Sequence[type[Party]] = (Foreground, Owner, Supervisord, Circus)
    rows = [[kind.name, *(str(_left(kind, end)) for end in (Party.kill, Party.stop))] for kind in kinds]
    show(
        f"Processes left {LEFT_AFTER_S:.0f} s after its supervisor: program and setsid grandchild (at most 0)",
        ["", "after kill -9", "after TERM"],
        rows,
    )


def _left(kind: type[Party], end: Callable[[Party], None]) -> int:
    with scratch() as folder:
        grandchild = folder / "grandchild"
        with kind(folder / "party", "--setsid-child", str(grandchild)) as party:
            wait_for(lambda: grandchild.exists() and bool(grandchild.read_text()), "it has no grandchild")
            program = {party.starts()[-1][0], int(grandchild.read_text())}
            assert program <= marked(party.folder)
            end(party)
            time.sleep(LEFT_AFTER_S)
            return len(program & marked(party.folder))


def _many() -> None:
    """Detached deployments, each with its own supervisor; then `rmlaunch stop --all` ends them."""
    with scratch() as folder:
        state = folder / "state"
        for first in range(0, MANY, _BATCH):
            for owner in [_trivial(f"f-{number:02d}", state) for number in range(first, min(first + _BATCH, MANY))]:
                owner.wait_ready()
                owner.detach()
        listed = json.loads(_rmlaunch(state, "ps", "--json")[0])
        assert [item["state"] for item in listed] == ["READY"] * MANY, listed
        time.sleep(SETTLED_S)
        (share,) = _cpu_percent([[item["supervisor"] for item in listed]])
        ps = statistics.median(_rmlaunch(state, "ps")[1] for _ in range(ROUNDS))
        stop = _rmlaunch(state, "stop", "--all")[1]
        wait_for(lambda: not marked(folder), "something is left of them", _GONE_S)
    show(
        f"{MANY} detached deployments of a trivial server",
        ["", "", "at most"],
        [
            [f"CPU of all {MANY} supervisors, % of a core", f"{share:.2f}", "5"],
            ["rmlaunch ps, median ms", f"{ps * 1000:.0f}", "300"],
            ["rmlaunch stop --all, s; nothing is left", f"{stop:.1f}", ""],
        ],
    )


def _trivial(name: str, state: Path) -> Supervised:
    port, folder = free_port(), state.parent / name
    folder.mkdir()
    return deploy(name, write_program(folder, port), port, state)


def _rmlaunch(state: Path, *words: str) -> tuple[str, float]:
    """Return what the command prints, and the seconds that it takes."""
    began = time.monotonic()
    done = subprocess.run(
        [f"{Path(sys.executable).parent}/rmlaunch", *words], env={**os.environ, "RMLAUNCH_STATE": str(state)},
        capture_output=True, text=True, check=True, timeout=_COMMAND_S,
    )  # fmt: skip
    return done.stdout, time.monotonic() - began


if __name__ == "__main__":
    main()
