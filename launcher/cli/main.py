"""The command line: a first word without `=` is a verb, all else is Hydra's own command line.

Answers and reports go to stdout, everything else to stderr. Exit codes: 0 done as asked, 1 the deployment failed, 2 the
request was wrong.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from engines.base import ConfigError, InferenceError, RmLaunchError, StoppedBeforeReady
from launcher import terminal
from launcher.cli.words import HYDRA_FLAGS, refuse_written_secrets, split

if TYPE_CHECKING:
    from engines.base import LaunchPlan
    from launcher.deployments.spawn import Spawned

_USAGE = """\
rmlaunch: plan, start, prove and stop model servers

  rmlaunch [engine=…] [device=…] [model=…] [key=value …]   launch in the foreground; Ctrl-C drains and stops
  rmlaunch … prompt="What is …?"                            launch, ask once, print the answer, stop
  rmlaunch plan … [--json | --as docker-run]                print everything that would be done, and do nothing
  rmlaunch -m engine=triton,llamacpp … prompt="…"           launch, measure and stop each combination; one report

  rmlaunch up -d … [name=NAME] [--replace] [--json]         launch, and return when it serves; it goes on without you
  rmlaunch ps [--all] [--watch] [--json], status NAME [--json]   what is deployed
  rmlaunch logs NAME [-f] [-n LINES] [--raw], metrics NAME  what its engine says; what its supervisor counts
  rmlaunch stop NAME … | --all [--now], restart NAME        drain and stop; --now kills
  rmlaunch infer NAME TEXT [max_tokens=20 …], chat NAME     ask it

  rmlaunch gateway up [-d] [gateway.routes.NAME=[a,b] …]    one OpenAI endpoint in front of all of them
  rmlaunch gateway key NAME                                 a key for it

  rmlaunch artifact list | show ID | prune [--unused] [--older-than DAYS] [--json]   what build steps have made
  rmlaunch image build engine=… device=… | list | prune [IMAGE …]   what runtime=docker runs
  rmlaunch info [--json]                                    what this machine has, who uses it, which engines can run
  rmlaunch doctor … [--json] [--online]                     what would stop this launch, each with its remedy

  --config-dir DIR    look for config groups (model/mine.yaml) there too; $XDG_CONFIG_HOME/rmlaunch always is
  --cfg job, --info, --hydra-help, -m, --shell-completion   Hydra's own
"""

#: what the folders of a user can be: full, not writable, not there, not folders
_PLACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
                 errno.ENOENT, errno.EISDIR, errno.ELOOP)  # fmt: skip
_PLACES = "; RMLAUNCH_STATE and RMLAUNCH_CACHE name other folders"


def main() -> None:
    """The console script `rmlaunch`."""
    terminal.guard()
    try:
        code = run(sys.argv[1:])
    except RmLaunchError as exc:
        sys.stderr.write(f"error: {exc}\n")
        code = exc.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output left (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as exc:
        if exc.errno not in _PLACE_ERRORS:
            raise
        sys.stderr.write(f"error: {exc.filename or 'output'} cannot be used: {exc.strerror}{_PLACES}\n")
        code = 1
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Do what `words` ask for; returns the exit code. Raises `RmLaunchError`."""
    if "--help" in words or "-h" in words:
        return _help()
    gateway = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else None
    hydras = [word.partition("=")[0] for word in words if word.partition("=")[0] in HYDRA_FLAGS]
    if gateway and hydras:
        raise ConfigError(f"{gateway} is rmlaunch's and {hydras[0]} is Hydra's; they do not go together")
    if hydras:
        return _hydra(words)
    if gateway is None:
        return _launch(*split(words))
    if gateway not in _VERBS:
        from launcher.suggest import unknown

        raise ConfigError(unknown("verb", gateway, sorted(_VERBS)) + "; overrides are written key=value")
    return _VERBS[gateway](words[1:])


def _help() -> int:
    from launcher.config.compose import options

    groups = "".join(
        f"  {group:<8} {', '.join(options(group))}\n" for group in ("engine", "device", "model", "runtime", "policy")
    )
    sys.stdout.write(f"{_USAGE}\nconfig groups:\n{groups}")
    return 0


def _plan(words: Sequence[str]) -> int:
    words, form = _form(words)
    overrides, config_dir = split([word for word in words if word != "--json"])
    from launcher import plan_json
    from launcher.cli import plan_text
    from launcher.config.compose import normalized
    from launcher.planning.machine import this_machine
    from launcher.planning.resolve import resolve
    from launcher.planning.settle import settle

    machine = this_machine()
    settled = settle(normalized(overrides), machine, config_dir)
    engine, spec = resolve(settled.config, machine)
    plan = engine.plan(spec)
    _say_reasons((*settled.reasons, *plan.notes))
    if form:
        text = _docker_run(plan)
    else:
        text = json.dumps(plan_json.public(plan), indent=2) if "--json" in words else "\n".join(plan_text.lines(plan))
    sys.stdout.write(f"{text}\n")
    return 0


def _form(words: Sequence[str]) -> tuple[Sequence[str], str]:
    """The words without `--as FORM`, and the form."""
    for number, word in enumerate(words):
        flag, equals, form = word.partition("=")
        if flag == "--as":
            form = form if equals else "".join(words[number + 1 : number + 2])
            if form != "docker-run":
                raise ConfigError(f"--as {form or '(nothing)'} is not known; write --as docker-run")
            if "--json" in words:
                raise ConfigError("--as docker-run and --json do not go together; leave one out")
            return [*words[:number], *words[number + (1 if equals else 2) :]], form
    return words, ""


def _docker_run(plan: LaunchPlan) -> str:
    from launcher.runtimes import docker_request

    if plan.container is None:
        raise ConfigError(f"--as docker-run needs a container, and this launch has runtime={plan.runtime}; add "
                          "runtime=docker")  # fmt: skip
    sys.stderr.write(f"a launch makes the image, the model and the files in {plan.run_dir} first\n")
    return docker_request.shown(plan)


def _up(words: Sequence[str]) -> int:
    if {"-d", "--detach"} & set(words):
        return _manage("up", words)
    return _launch(*split(words))


def _manage(verb: str, words: Sequence[str]) -> int:
    from launcher.cli import deployments

    return deployments.run(verb, words)


def _artifact(words: Sequence[str]) -> int:
    from launcher.cli import artifacts

    return artifacts.run(words)


def _image(words: Sequence[str]) -> int:
    from launcher.cli import images

    return images.run(words)


def _gateway(words: Sequence[str]) -> int:
    from launcher.cli import gateway

    return gateway.run(words)


def _info(words: Sequence[str]) -> int:
    from launcher.cli.info import report

    return report(words)


def _doctor(words: Sequence[str]) -> int:
    from launcher.cli.doctor import FLAGS, report

    overrides, config_dir = split([word for word in words if word not in FLAGS])
    return report(overrides, config_dir, [word for word in words if word in FLAGS])


_MANAGED = ("ps", "status", "logs", "metrics", "stop", "restart", "infer", "chat")
_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": _plan,
    "up": _up,
    "artifact": _artifact,
    "image": _image,
    "gateway": _gateway,
    "info": _info,
    "doctor": _doctor,
    **{gateway: partial(_manage, gateway) for gateway in _MANAGED},
}


def _launch(overrides: Sequence[str], config_dir: str | None) -> int:
    from launcher.deployments.spawn import Spawned

    spawned = Spawned()  # first of all, because it takes a while
    try:
        return _launch_with(spawned, overrides, config_dir)
    finally:
        spawned.close()


def _launch_with(spawned: Spawned, overrides: Sequence[str], config_dir: str | None) -> int:
    from launcher.config.compose import normalized
    from launcher.planning.machine import this_machine
    from launcher.planning.settle import settle
    from launcher.progress import Progress
    from launcher.serving.engine import ServingEngine
    from launcher.supervise.lifecycle import Phase

    machine = this_machine(launches=True)
    settled = settle(normalized(overrides), machine, config_dir)
    engine = ServingEngine(settled, Progress(), spawned, machine=machine)
    _say_reasons(engine.reasons)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not engine.ask_stop():  # nothing runs yet: leave whatever is being prepared
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


def _hydra(words: Sequence[str]) -> int:
    import hydra

    from launcher.cli.sweep import job
    from launcher.config.compose import HYDRA_VERSION_BASE, hydra_of_our_own, normalized, readable_errors
    from launcher.paths import shipped

    overrides, config_dir = split(words)
    refuse_written_secrets(overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message is ours
    sys.argv = [sys.argv[0], *normalized(words)]
    decorate = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name="config")
    with readable_errors(), hydra_of_our_own():  # it reads --config-dir itself
        decorate(job(config_dir))()
    return 0


def _say_reasons(reasons: Sequence[str]) -> None:
    for reason in reasons:
        sys.stderr.write(f"{reason}\n")


if __name__ == "__main__":
    main()
