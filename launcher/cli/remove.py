"""The verb `rm`: remove the records and the logs of deployments that have ended."""

from __future__ import annotations

import argparse

from engines.base import ConfigError, RmLaunchError
from launcher.cli.stop import exit_code
from launcher.deployments.records import Deployments, not_found
from launcher.output import note
from launcher.paths import state_root
from launcher.supervise.lifecycle import Phase


def rm(args: argparse.Namespace) -> int:
    """Remove all that are named, whatever becomes of one of them. Raises the error of the only one that fails."""
    if bool(args.names) + args.failed + args.all != 1:
        raise ConfigError("name what to remove: rmlaunch rm NAME …, or --failed, or --all for all that have ended")
    deployments, failed = Deployments(state_root()), list[RmLaunchError | OSError]()
    found = {item.name: item for item in deployments.all()}
    ended = [name for name, item in found.items() if not item.live and item.news.phase.final]
    chosen = [name for name in ended if args.all or found[name].news.phase is Phase.FAILED]
    for name in dict.fromkeys(args.names) or chosen:
        try:
            if name not in found:
                raise not_found(name, found.values())
            deployments.remove(name)
            note(f"removed: {name}")
        except (RmLaunchError, OSError) as exc:  # noqa: PERF203  (the others are removed all the same)
            failed.append(exc)
    return exit_code(failed)
