"""The verb `plan`: print everything that a launch would do, and do nothing."""

from __future__ import annotations

import argparse
import json
import sys

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
    """Raises `ConfigError` and `PlanError` where the launch cannot be planned."""
    if args.form not in (None, _FORM):
        raise ConfigError(f"--as {args.form} is not known; write --as {_FORM}")
    if args.form and args.json:
        raise ConfigError(f"--as {_FORM} and --json do not go together; leave one out")
    machine = this_machine()
    settled = settle(normalized(args.overrides), machine, args.config_dir)
    engine, spec = resolve(settled.config, machine)
    planned = engine.plan(spec)
    for reason in (*settled.reasons, *planned.notes):
        note(reason)
    if args.form:
        text = _docker_run(planned)
    else:
        text = json.dumps(plan_json.public(planned), indent=2) if args.json else "\n".join(plan_text.lines(planned))
    sys.stdout.write(f"{text}\n")
    return 0


def _docker_run(planned: LaunchPlan) -> str:
    from launcher.runtimes import docker_request

    if planned.container is None:
        raise ConfigError(f"--as {_FORM} needs a container, and this launch has runtime={planned.runtime}; add "
                          "runtime=docker")  # fmt: skip
    note(f"a launch makes the image, the model and the files in {planned.run_dir} first")
    return docker_request.shown(planned)
