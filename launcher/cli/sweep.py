"""Hydra's own flags. Multirun: each combination is launched, measured and stopped; one report at the end.

A job leaves its row in its own output folder, so that the report also works with Hydra launchers that run jobs in
other processes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra as _hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from engines.base import RmLaunchError
from launcher.cli.oneshot import measure
from launcher.cli.words import refuse_written_secrets, split
from launcher.config.compose import HYDRA_VERSION_BASE, hydra_of_our_own, normalized, readable_errors
from launcher.paths import shipped
from launcher.planning.machine import this_machine
from launcher.planning.settle import settle
from launcher.progress import Progress
from launcher.serving.engine import ServingEngine

log = logging.getLogger(__name__)

_ROW = "row.json"
_PROMPT = "What is the capital of France?"
COLUMNS = (
    "engine", "device", "model", "ok", "ready_s", "first_token_s", "tokens_per_s", "peak_memory_mb", "answer", "error",
    "overrides",
)  # fmt: skip


def hydra(words: Sequence[str]) -> int:
    """Let Hydra run the command line `words`, one of which is a flag of its own."""
    overrides, config_dir = split(words)
    refuse_written_secrets(overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message is ours
    sys.argv = [sys.argv[0], *normalized(words)]
    decorate = _hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name="config")
    with readable_errors(), hydra_of_our_own():  # it reads --config-dir itself
        decorate(job(config_dir))()
    return 0


def job(config_dir: str | None) -> Callable[[DictConfig], None]:
    """Return the function that Hydra calls for each combination."""

    def run(_config: DictConfig) -> None:
        hydra = HydraConfig.get()
        overrides = list(hydra.overrides.task)
        row = measure_launch(overrides, config_dir)
        Path(hydra.runtime.output_dir, _ROW).write_text(json.dumps(row, indent=1))

    return run


def measure_launch(overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Launch, measure and stop one combination; return its row of the report. A failure is a row with its cause."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"ok": False, "overrides": " ".join(overrides)}
    try:
        machine = this_machine(launches=True)
        engine = ServingEngine(settle(overrides, machine, config_dir), Progress(), machine=machine)
        row |= {"engine": engine.engine_type, "device": engine.config.device.kind, "model": engine.config.model.id}
        with engine:
            answer = measure(engine, engine.config.prompt or _PROMPT)
            row |= {
                "ready_s": round(engine.progress.seconds["start"], 3),
                "first_token_s": round(answer.first_token_s, 4),
                "tokens_per_s": round(answer.tokens_per_s, 1) if answer.tokens_per_s else None,
                "peak_memory_mb": peak_memory_mb(engine),
                "answer": answer.text.strip(),
            }
        row["ok"] = True
    except RmLaunchError as exc:
        row["error"] = str(exc)
    except Exception as exc:  # one combination must not end the others
        log.exception("%s", row["overrides"])
        row["error"] = f"{type(exc).__name__}: {exc}"
    return row


def peak_memory_mb(engine: ServingEngine) -> int | None:
    """The most memory that each process of the engine ever had resident (VmHWM), added up, in MiB; None if gone."""
    import psutil

    try:
        leader = psutil.Process(engine.news.pid or 0)
    except psutil.NoSuchProcess:
        return None
    return sum(_high_water_kib(process.pid) for process in (leader, *leader.children(recursive=True))) // 1024


def _high_water_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


class Report(Callback):
    """Hydra's callback: when the last combination is done, one table, report.json and report.csv."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table, and write report.json and report.csv into Hydra's sweep folder."""
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob(f"*/{_ROW}"), key=lambda file: (len(file.parent.name), file.parent.name))
        rows = [json.loads(file.read_text()) for file in files]
        (folder / "report.json").write_text(json.dumps(rows, indent=1))
        with (folder / "report.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        _print_table(rows)
        sys.stderr.write(f"report: {folder.absolute()}/report.json, report.csv\n")


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "device", "model", "ready s", "first token s", "tokens/s", "peak MiB", "answer or cause")
    for row in rows:
        numbers = ["–" if row[key] is None else str(row[key]) for key in COLUMNS[4:8]]
        text = str(row["answer"] if row["ok"] else f"FAILED: {row['error']}")
        names = [str(row[key] or "–") for key in COLUMNS[:3]]
        table.add_row(*names, *numbers, " ".join(text.split())[:200])
    # Neither colours nor markup: a model's answer would be read as the latter, and `terminal` shows the former.
    Console(width=max(Console().width, 120), color_system=None, markup=False, emoji=False).print(table)
