"""The verbs `ps` and `status`: what is deployed, and all about one deployment."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from engines.base import ConfigError
from launcher import terminal
from launcher.deployments.records import Deployment, Deployments
from launcher.output import duration, note, print_fields, print_json, print_table
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase

_WATCH_PERIOD_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"
_HEAD = ("NAME", "STATE", "ENGINE", "DEVICE", "MODEL", "ENDPOINT", "UP", "RESTARTS", "PID")


def ps(args: argparse.Namespace) -> int:
    """List what runs and what has failed; with --all what was stopped too."""
    if args.json and args.watch:
        raise ConfigError("--json and --watch do not go together; leave one out")
    while True:
        found = [item for item in Deployments(state_root()).all() if item.listed or args.all]
        if args.json:
            print_json([_summary(item) for item in found])
            return 0
        if args.watch:
            terminal.command(sys.stdout, _CLEAR)
        _print_table(found)
        if not args.watch:
            return 0
        time.sleep(_WATCH_PERIOD_S)


def status(args: argparse.Namespace) -> int:
    """Print one deployment's fields, and the last lines of its log. Raises `RequestError` where there is none."""
    item = Deployments(state_root()).find(args.name)
    summary = _summary(item)
    if args.json:
        print_json(summary)
    else:
        print_fields(summary, item.news.tail)
    return 0


def _print_table(found: Sequence[Deployment]) -> None:
    print_table([_HEAD, *(_row(item) for item in found)])
    for item in found:
        if item.news.phase is Phase.UNKNOWN:
            note(item.news.reason)
        elif item.news.phase.final and item.news.leftovers:
            left = ", ".join(item.news.leftovers)
            note(f"{item.name}: still there: {left}; `rmlaunch stop {item.name}` tries again to end it")
        elif item.news.phase is Phase.FAILED:
            note(
                f"{item.name} has failed; `rmlaunch status {item.name}` tells why, `rmlaunch rm {item.name}` removes it"
            )


def _row(item: Deployment) -> tuple[str, ...]:
    data = _summary(item)
    restarts = str(max(0, item.news.starts - 1))
    up = duration(data["up_s"]) if item.live else "–"
    pid = str(item.news.pid or "–") if item.live else "–"
    columns = ("name", "state", "engine", "device", "model", "endpoint")
    return (*(data[column] for column in columns), up, restarts, pid)


def _summary(item: Deployment) -> dict[str, Any]:
    """The fields of one deployment as --json prints them."""
    news, simulated = item.news, item.find("device", "simulated") is True
    return {
        "name": item.name,
        "state": news.phase.value,
        "reason": news.reason,
        "engine": item.told("engine"),
        "device": item.told("device", "kind") + (" (simulated)" if simulated else ""),
        "model": item.told("model", "id"),
        "endpoint": item.told("endpoints", "http"),
        "detached": news.detached,
        "up_s": round(time.time() - news.since, 1) if item.live and news.since else 0.0,
        "starts": news.starts,
        "crashes": news.crashes,
        "pid": news.pid if item.live else None,
        "supervisor": news.supervisor if item.live else None,
        "log": news.log,
        "timings": dict(news.timings),
        "leftovers": list(news.leftovers),
    }
