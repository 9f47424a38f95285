"""The verb `plan`: print everything that a launch would do, and do nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from engines.base import ConfigError, LaunchPlan
from launcher import plan_json
from launcher.cli import plan_text
from launcher.config.compose import normalized
from launcher.output import note
from launcher.planning.machine import this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle

_FORM = "docker-run"


def plan(args: argparse.Namespace) -> int:
    """Print the plan of a launch. Raises `ConfigError` and `PlanError` where it cannot be planned."""
    if args.form not in (None, _FORM):
        raise ConfigError(f"--as {args.form} is not known; write --as {_FORM}")
    if args.form and args.json:
        raise ConfigError(f"--as {_FORM} and --json do not go together; leave one out")
    reasons, made = planned(args.overrides, args.config_dir)
    for reason in (*reasons, *made.notes):
        note(reason)
    if args.form:
        text = _docker_run(made)
    else:
        text = json.dumps(plan_json.public(made), indent=2) if args.json else "\n".join(plan_text.lines(made))
    sys.stdout.write(f"{text}\n")
    return 0


def planned(overrides: Sequence[str], config_dir: str | None) -> tuple[tuple[str, ...], LaunchPlan]:
    """Return the plan of what `overrides` mean, and why each `auto` in it became what it is; nothing is launched.

    Raises `ConfigError` and `PlanError` where it cannot be planned.
    """
    machine = this_machine()
    settled = settle(normalized(overrides), machine, config_dir)
    engine, spec = resolve(settled.config, machine)
    return settled.reasons, engine.plan(spec)


def _docker_run(planned: LaunchPlan) -> str:
    from launcher.runtimes import docker_request

    if planned.container is None:
        raise ConfigError(f"--as {_FORM} needs a container, and this launch has runtime={planned.runtime}; add "
                          "runtime=docker")  # fmt: skip
    note(f"a launch makes the image, the model and the files in {planned.run_dir} first")
    return docker_request.shown(planned)
