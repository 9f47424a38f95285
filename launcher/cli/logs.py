"""The verbs `logs` and `metrics`: what an engine says, and what its supervisor counts."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engines.base import ConfigError, RequestError
from launcher import terminal
from launcher.deployments.records import Deployment, Deployments
from launcher.paths import state_root
from launcher.supervise.protocol import Numbers

_LINES = 100
_PERIOD_S = 0.1


def logs(args: argparse.Namespace) -> int:
    """Print the last lines of the log of the last start. Raises `RequestError` where there is none."""
    count = _LINES if args.lines is None else args.lines
    if count < 0:
        raise ConfigError(f"-n {count} must not be negative")
    deployments = Deployments(state_root())
    item = deployments.find(args.name)
    log = item.log
    if not log.is_file():
        raise RequestError(f"{item.name} has no log yet")
    write = terminal.byte_writer(args.raw)
    lines = log.read_bytes().splitlines(keepends=True)
    write(b"".join(lines[max(0, len(lines) - count) :]))
    if args.follow and item.live:
        for piece in _grown(deployments, item, log, log.stat().st_size):
            write(piece)
    return 0


def _grown(deployments: Deployments, item: Deployment, log: Path, offset: int) -> Iterator[bytes]:
    """Yield what is added to the log from `offset` on, and to those of later starts, until the deployment has ended."""
    while True:
        item = deployments.find(item.name)
        with log.open("rb") as stream:
            if log.stat().st_size < offset:  # it was cut
                offset = 0
            stream.seek(offset)
            yield (piece := stream.read())
            offset += len(piece)
        newest = item.log
        if newest != log and newest.is_file():
            log, offset = newest, 0
        elif not item.live:
            return
        time.sleep(_PERIOD_S)


def metrics(args: argparse.Namespace) -> int:
    """Print the supervisor's numbers. Raises `RequestError` where the deployment does not run."""
    with Deployments(state_root()).find(args.name).connect() as connection:
        sys.stdout.write(connection.learn("metrics", Numbers).text)
    return 0
