"""The verbs `stop` and `kill`: end deployments, with a drain or without, and wait until nothing is left of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from engines.base import ConfigError, DeploymentError, RmLaunchError
from launcher.at_once import at_once
from launcher.deployments.connection import Connection, NoAnswerError
from launcher.deployments.ledger import in_words
from launcher.deployments.records import Deployment, Deployments, not_found
from launcher.output import note
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News


def stop(args: argparse.Namespace) -> int:
    """Stop all that are named, whatever becomes of one of them. Raises the error of the only one that fails."""
    if bool(args.names) == args.all:
        verb = "kill" if args.now else "stop"
        raise ConfigError(f"name what to {verb}: rmlaunch {verb} NAME …, or rmlaunch {verb} --all")
    found = {item.name: item for item in Deployments(state_root()).all()}
    names = [name for name, item in found.items() if item.there] if args.all else list(dict.fromkeys(args.names))

    def one(name: str) -> RmLaunchError | OSError | None:
        try:
            if name not in found:
                raise not_found(name, found.values())
            end(found[name], args.now)
        except (RmLaunchError, OSError) as exc:  # the others are stopped all the same
            return exc
        except Exception as exc:  # noqa: BLE001  (a bug, or a record that nobody foresaw)
            return DeploymentError(f"{name} cannot be stopped: {in_words(exc)}")
        return None

    return exit_code([exc for exc in at_once(one, names) if exc is not None])


def exit_code(failed: Sequence[RmLaunchError | OSError]) -> int:
    """Say what failed of several, and return the exit code; raise the error where it is the only one."""
    if len(failed) == 1:
        raise failed[0]
    for exc in failed:
        note(f"error: {exc}")
    return min((getattr(exc, "exit_code", 1) for exc in failed), default=0)


def kill(args: argparse.Namespace) -> int:
    """Stop as `stop --now`: without a drain, or without the rest of one."""
    args.now = True
    return stop(args)


def end(item: Deployment, now: bool) -> None:
    """Stop and wait until nothing is left. Raises `DeploymentError` where something is, or nobody answers."""
    if not item.there:
        raise item.not_running()
    news = _drained(item, now) or Deployments(state_root()).put_down(item.name, now=now)
    if news.phase is not Phase.STOPPED or news.leftovers:
        left = ", ".join(news.leftovers) or news.reason or news.phase.value
        raise DeploymentError(f"{item.name} did not stop cleanly: {left}")
    Deployments(state_root()).wait_ended(item.name)
    note(f"stopped: {item.name}; nothing is left of it")


def _drained(item: Deployment, now: bool) -> News | None:
    """The last word of its supervisor; None where that is for others to find: nobody listens, or it is to be killed."""
    try:
        with Connection(item.folder) as connection:
            return connection.until(lambda news: news.phase.final, "kill" if now else "stop")
    except OSError:
        return None
    except NoAnswerError:
        if not now:
            raise
        return None
