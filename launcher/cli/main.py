"""The command line: a first word without `=` is a verb, all else is Hydra's own command line.

Answers and reports go to stdout, everything else to stderr. Exit codes: 0 done as asked, 1 the deployment failed, 2 the
request was wrong.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from engines.errors import ConfigError, RmLaunchError
from launcher import terminal
from launcher.cli.words import HELP, HYDRA_FLAGS, check_config_dir, split, verb_of

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
    if words and words[0] == "__complete":  # a shell asks at each Tab
        from launcher.cli import completion

        return completion.answer(words[1:])
    name, rest = verb_of(words)
    if name:
        return _verb(name, rest)
    if {*HELP} & {*words}:
        return _overview()
    if "--version" in words:
        return _version(words)
    if any(word.partition("=")[0] in HYDRA_FLAGS for word in words):
        from launcher.cli import sweep

        return sweep.hydra(words)
    overrides, config_dir = split(words)
    if not overrides:  # an alias that gives --config-dir is no wish to start anything
        check_config_dir(config_dir)
        return _overview()
    from launcher.cli import launch

    return launch.launch(overrides, config_dir)


def _overview() -> int:
    from launcher.cli import help as helping

    return helping.overview()


def _verb(name: str, words: Sequence[str]) -> int:
    """Find the verb, import it and call it with the words that stand around its name."""
    from launcher.cli import table

    verb = table.VERBS.get(name)
    if verb is None:
        return _no_verb(name, words)
    from launcher.cli.parser import parse

    try:
        args = parse(name, words)
    except SystemExit:  # the help was printed
        return 0
    from launcher.import_path import load

    code: int = load(verb.where)(args)
    return code


def _no_verb(name: str, words: Sequence[str]) -> int:
    from launcher.cli import table
    from launcher.suggest import unknown

    group, _, verb = name.partition(" ")
    if group not in table.GROUPS:
        raise ConfigError(unknown("verb", name, sorted(table.first_words())) + "; overrides are written key=value")
    if verb:
        raise ConfigError(unknown(f"{group} verb", verb, table.of_group(group)))
    if {*HELP} & {*words}:
        from launcher.cli import help as helping

        return helping.group(group)
    verbs = " | ".join(table.of_group(group))
    raise ConfigError(f"{group} needs a verb: rmlaunch {group} {verbs}; see rmlaunch {group} --help")


def _version(words: Sequence[str]) -> int:
    import launcher

    if len(words) > 1:
        raise ConfigError(f"--version goes alone; leave out {next(word for word in words if word != '--version')!r}")
    sys.stdout.write(f"rmlaunch {launcher.__version__}\n")
    return 0


if __name__ == "__main__":
    main()
