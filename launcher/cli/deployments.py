"""The verbs that manage deployments: up, ps, status, logs, stop, restart, infer, chat."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import ConfigError, DeploymentError, RequestError
from launcher import terminal
from launcher.cli import stop
from launcher.cli.words import Parser
from launcher.deployments.records import Deployment, Deployments
from launcher.output import duration, note, print_fields, print_json, print_table
from launcher.paths import state_root
from launcher.serving.attached import Attached
from launcher.serving.client import Message
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import Numbers

#: of a restart, beyond its start
_STOP_TIMEOUT_S = 60.0
_STARTUP_S = 600.0  #: where the record does not tell
_LOG_PERIOD_S = 0.1
_WATCH_PERIOD_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"


def run(verb: str, words: Sequence[str]) -> int:
    parser = Parser(prog=f"rmlaunch {verb}", add_help=False, allow_abbrev=False)
    arguments, do = _VERBS[verb]
    for names, options in arguments:
        parser.add_argument(*names, **options)
    return do(parser.parse_args(words))


# ---------------------------------------------------------------------------------------------------------- looking


def _ps(asked: argparse.Namespace) -> int:
    while True:
        found = [item for item in Deployments(state_root()).all() if item.live or item.there or asked.all]
        if asked.json:
            print_json([_summary(item) for item in found])
            return 0
        if asked.watch:
            terminal.command(sys.stdout, _CLEAR)
        _print_table(found)
        if not asked.watch:
            return 0
        time.sleep(_WATCH_PERIOD_S)


def _print_table(found: Sequence[Deployment]) -> None:
    head = ("NAME", "STATE", "ENGINE", "DEVICE", "MODEL", "ENDPOINT", "UP", "RESTARTS", "PID")
    print_table([head, *(_row(item) for item in found)])
    for item in found:
        if item.news.phase is Phase.UNKNOWN:
            note(item.news.reason)
        elif item.news.phase.final and item.news.leftovers:
            left = ", ".join(item.news.leftovers)
            note(f"{item.name}: still there: {left}; `rmlaunch stop {item.name}` tries again to end it")


def _row(item: Deployment) -> tuple[str, ...]:
    data = _summary(item)
    restarts = str(max(0, item.news.starts - 1))
    up = duration(data["up_s"]) if item.live else "–"
    pid = str(item.news.pid or "–") if item.live else "–"
    columns = ("name", "state", "engine", "device", "model", "endpoint")
    return (*(data[column] for column in columns), up, restarts, pid)


def _summary(item: Deployment) -> dict[str, Any]:
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


def _status(asked: argparse.Namespace) -> int:
    item = Deployments(state_root()).find(asked.name)
    summary = _summary(item)
    if asked.json:
        print_json(summary)
        return 0
    print_fields(summary, item.news.tail)
    return 0


def _logs(asked: argparse.Namespace) -> int:
    deployments = Deployments(state_root())
    item = deployments.find(asked.name)
    log = item.log
    if not log.is_file():
        raise RequestError(f"{item.name} has no log yet")
    write = terminal.byte_writer(asked.raw)
    lines = log.read_bytes().splitlines(keepends=True)
    write(b"".join(lines[-asked.lines :]))
    if asked.follow and item.live:
        for piece in _grown(deployments, item, log, log.stat().st_size):
            write(piece)
    return 0


def _grown(deployments: Deployments, item: Deployment, log: Path, offset: int) -> Iterator[bytes]:
    """What is added to the log from `offset` on, and to those of later starts, until the deployment has ended."""
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
        time.sleep(_LOG_PERIOD_S)


def _metrics(asked: argparse.Namespace) -> int:
    with Deployments(state_root()).find(asked.name).connect() as connection:
        sys.stdout.write(connection.learn("metrics", Numbers).text)
    return 0


# --------------------------------------------------------------------------------------------------------- changing


def _up(asked: argparse.Namespace) -> int:
    from launcher.deployments.spawn import Spawned

    spawned = Spawned()  # first of all, because it takes a while
    try:
        from launcher.cli.up import bring_up

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        name, url = bring_up(asked.overrides, asked.config_dir, spawned, replace=asked.replace)
        return _say_endpoint(name, url, asked.json)
    finally:
        spawned.close()


def _restart(asked: argparse.Namespace) -> int:
    item = Deployments(state_root()).find(asked.name)
    starts, startup_s = item.news.starts, item.find("probes", "startup", "timeout_s")
    limit = (startup_s if isinstance(startup_s, (int, float)) else _STARTUP_S) + _STOP_TIMEOUT_S
    with item.connect() as connection:
        news = connection.until(
            # BACKOFF: it will be tried again for as long as that takes, and the user has the cause now.
            lambda news: (news.phase in (Phase.READY, Phase.BACKOFF) and news.starts > starts) or news.phase.final,
            "restart",
            deadline=time.monotonic() + limit,
        )
    if news is None or news.phase is not Phase.READY:
        told = f"{news.phase.value} after the restart: {news.reason}" if news else "gone: its supervisor has ended"
        raise DeploymentError(f"{item.name} is {told}")
    return _say_endpoint(item.name, item.told("endpoints", "http"), as_json=False)


# ----------------------------------------------------------------------------------------------------------- asking


def _infer(asked: argparse.Namespace) -> int:
    client = Attached(Deployments(state_root()).find(asked.name))
    try:
        if client.plan.model.task == "embed":
            print_json(client.embed([asked.text])[0].tolist())
            return 0
        _stream(client.stream(asked.text, **_sampling(asked.sampling)))
        return 0
    finally:
        client.close()


def _chat(asked: argparse.Namespace) -> int:
    client = Attached(Deployments(state_root()).find(asked.name))
    sampling = {"max_tokens": 512, **_sampling(asked.sampling)}
    messages: list[Message] = []
    try:
        while line := _read_line():
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": _stream(client.stream(messages, **sampling))})
    finally:
        client.close()
    return 0


def _read_line() -> str:
    """What the user says; empty at the end of the input, and lines with nothing in them are passed over."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()


def _stream(pieces: Iterator[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return text


def _sampling(words: Sequence[str]) -> Mapping[str, Any]:
    """`max_tokens=20 temperature=0.5` as numbers, and lists where they are JSON."""
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not understood; sampling options are written key=value")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given


# ---------------------------------------------------------------------------------------------------------- showing


def _say_endpoint(name: str, url: str, as_json: bool) -> int:
    if as_json:
        print_json({"name": name, "endpoint": url})
    else:
        sys.stdout.write(f"{name} {url}\n")
    return 0


_Argument = tuple[tuple[str, ...], dict[str, Any]]
_NAME: _Argument = (("name",), {})
_JSON: _Argument = (("--json",), {"action": "store_true"})
_SAMPLING: _Argument = (("sampling",), {"nargs": "*"})
_VERBS: dict[str, tuple[list[_Argument], Callable[[argparse.Namespace], int]]] = {
    "up": (
        [
            (("-d", "--detach"), {"action": "store_true", "required": True}),
            (("--replace",), {"action": "store_true"}),
            _JSON,
            (("--config-dir", "-cd"), {}),
            (("overrides",), {"nargs": "*"}),
        ],
        _up,
    ),
    "ps": (
        [
            (("-a", "--all"), {"action": "store_true"}),
            (("-w", "--watch"), {"action": "store_true"}),
            _JSON,
        ],
        _ps,
    ),
    "status": ([_NAME, _JSON], _status),
    "logs": (
        [
            _NAME,
            (("-f", "--follow"), {"action": "store_true"}),
            (("-n", "--lines"), {"type": int, "default": 100}),
            (("--raw",), {"action": "store_true"}),
        ],
        _logs,
    ),
    "stop": (
        [
            (("names",), {"nargs": "*"}),
            (("--all",), {"action": "store_true"}),
            (("--now",), {"action": "store_true"}),
        ],
        stop.stop,
    ),
    "restart": ([_NAME], _restart),
    "metrics": ([_NAME], _metrics),
    "infer": ([_NAME, (("text",), {}), _SAMPLING], _infer),
    "chat": ([_NAME, _SAMPLING], _chat),
}
