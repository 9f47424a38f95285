"""Launching in the foreground, and `up`. The supervisor is started first of all: that takes as long as planning."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from engines.errors import ConfigError, InferenceError, RmLaunchError, StoppedBeforeReady

if TYPE_CHECKING:
    import argparse

    from launcher.deployments.spawn import Spawned


def up(args: argparse.Namespace) -> int:
    """The verb `up`. Raises what `launch` and `launcher.cli.up.bring_up` raise."""
    from launcher.deployments.spawn import Spawned

    if not args.detach:
        if unused := [flag for flag, given in (("--replace", args.replace), ("--json", args.json)) if given]:
            raise ConfigError(f"{unused[0]} goes with -d; add -d, or leave {unused[0]} out")
        return launch(args.overrides, args.config_dir)
    spawned = Spawned()
    try:
        from launcher.cli.up import bring_up
        from launcher.output import print_endpoint

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        name, url = bring_up(args.overrides, args.config_dir, spawned, replace=args.replace)
        print_endpoint(name, url, as_json=args.json)
        return 0
    finally:
        spawned.close()


def launch(overrides: Sequence[str], config_dir: str | None) -> int:
    """Launch what `overrides` mean, and stay until it has ended; with prompt= until it has answered."""
    from launcher.deployments.spawn import Spawned

    spawned = Spawned()
    try:
        return _launch_with(spawned, overrides, config_dir)
    finally:
        spawned.close()


def _launch_with(spawned: Spawned, overrides: Sequence[str], config_dir: str | None) -> int:
    from launcher.config.compose import normalized
    from launcher.output import note
    from launcher.planning.machine import this_machine
    from launcher.planning.settle import settle
    from launcher.progress import Progress
    from launcher.serving.engine import ServingEngine
    from launcher.supervise.lifecycle import Phase

    machine = this_machine(launches=True)
    settled = settle(normalized(overrides), machine, config_dir)
    engine = ServingEngine(settled, Progress(), spawned, machine=machine)
    for reason in engine.reasons:
        note(reason)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if engine.stop_asked:
            engine.kill()
        elif not engine.ask_stop():  # nothing runs yet: leave whatever is being prepared
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        engine.start()
        if engine.config.prompt is not None:
            from launcher.cli.oneshot import ask

            try:
                ask(engine, engine.config.prompt)
            except InferenceError as exc:
                if engine.stop_asked:
                    raise StoppedBeforeReady(f"{engine.name}: stopped before it had answered") from exc
                raise
            stopped = engine.stop()
        else:
            engine.progress.note(f"ready: {engine.name} at {engine.plan.endpoints.http.url}; Ctrl-C stops it")
            stopped = engine.wait()
    finally:
        engine.close()
    if stopped is None or stopped.phase is not Phase.STOPPED or stopped.leftovers:
        left = ", ".join(stopped.leftovers) if stopped else ""
        raise RmLaunchError(f"{engine.name} did not stop cleanly{': still there: ' + left if left else ''}")
    engine.progress.note(f"stopped: {engine.name}; nothing is left of it")
    return 0
