"""The table of commands: each verb with its words, one line of help, and where it lives. Data alone.

A verb is imported when it is chosen. Its parser and its help (launcher/cli/parser.py), the overview
(launcher/cli/help.py) and what a shell completes (launcher/cli/completion.py) are all made from its entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a verb: an argument ("NAME"), or a flag with its spellings ("-n", "--lines").

    `value` is what the flag's value is called, and empty for a flag without one. `many` takes any number of words, none
    too. `key` is the attribute that has what was given. `number` reads the value as int or float. `offers` is what a
    shell completes it with: a key of `launcher.cli.completion.OFFERS`, or the choices themselves, separated by `|`.
    """

    names: tuple[str, ...]
    help: str
    value: str = ""
    many: bool = False
    key: str = ""
    number: type[int] | type[float] | None = None
    offers: str = ""

    @property
    def is_flag(self) -> bool:
        """Whether the word begins with a dash. The place of any other word says what it is."""
        return self.names[0].startswith("-")

    @property
    def dest(self) -> str:
        """The attribute that has what was given."""
        return self.key or self.names[-1].lstrip("-").replace("-", "_").lower()

    @property
    def usage(self) -> str:
        """The word as it stands in the overview: `NAME`, `[NAME …]`, `[-n LINES]`."""
        if self.is_flag:
            return f"[{self.names[0]}{' ' + self.value if self.value else ''}]"
        return f"[{self.names[0]} …]" if self.many else self.names[0]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. `where` is "module:function"; the function takes the parsed words and returns the exit code."""

    where: str
    help: str
    words: tuple[Word, ...] = ()
    example: str = ""


#: what every verb takes, before its name and after
CONFIG_DIR = Word(
    ("--config-dir", "-cd"),
    "look for config groups in DIR too; verbs that read no config only look whether it is there",
    value="DIR",
    key="config_dir",
    offers="folder",
)

_JSON = Word(("--json",), "print data instead of text")
_OVERRIDES = Word(("key=value",), "override a key of the config", many=True, key="overrides", offers="override")
_SAMPLING = Word(("key=value",), "set how it is sampled: max_tokens=20", many=True, key="sampling", offers="sampling")
_REPLACE = Word(("--replace",), "drain and stop what runs under that name with another plan, and start this one")


def _name(offers: str, help: str = "name the deployment") -> Word:  # noqa: A002  (as in `Word`)
    return Word(("NAME",), help, offers=offers)


def _names(offers: str, help: str) -> Word:  # noqa: A002
    return Word(("NAME",), help, many=True, key="names", offers=offers)


#: title → verb → entry, in the order of the overview; "gateway up" is the verb `up` of `gateway`
SECTIONS: Mapping[str, Mapping[str, Verb]] = {
    "launch": {
        "plan": Verb(
            "launcher.cli.plan:plan",
            "print everything that a launch would do, and do nothing",
            (
                _OVERRIDES,
                _JSON,
                Word(("--as",), "print the docker run that equals it", "docker-run", key="form", offers="docker-run"),
            ),
            "rmlaunch plan engine=vllm device=gpu model=llama3-70b engine.tensor_parallel_size=4 --json",
        ),
        "up": Verb(
            "launcher.cli.launch:up",
            "launch; with -d return when it serves, and leave it running",
            (
                _OVERRIDES,
                Word(("-d", "--detach"), "return when it serves; without it, stay until Ctrl-C"),
                Word(_REPLACE.names, f"{_REPLACE.help} (with -d)"),
                Word(_JSON.names, f"{_JSON.help} (with -d)"),
            ),
            "rmlaunch up -d engine=triton device=cpu model=smollm2 name=a",
        ),
        "doctor": Verb(
            "launcher.cli.doctor:doctor",
            "tell what would stop a launch, each with its remedy",
            (_OVERRIDES, _JSON, Word(("--online",), "ask the package indexes too")),
            "rmlaunch doctor engine=triton device=cpu",
        ),
        "info": Verb(
            "launcher.cli.info:info",
            "tell what this machine has, who uses it, which engines can run",
            (_JSON,),
            "rmlaunch info --json",
        ),
    },
    "what is deployed": {
        "ps": Verb(
            "launcher.cli.ps:ps",
            "list what runs and what has failed",
            (
                Word(("-a", "--all"), "list what was stopped too"),
                Word(("-w", "--watch"), "show it anew each second"),
                _JSON,
            ),
            "rmlaunch ps --all",
        ),
        "status": Verb(
            "launcher.cli.ps:status",
            "tell all about one deployment",
            (_name("deployment"), _JSON),
            "rmlaunch status a --json",
        ),
        "logs": Verb(
            "launcher.cli.logs:logs",
            "print what its engine says",
            (
                _name("deployment"),
                Word(("-f", "--follow"), "go on with what is added, over restarts, until it has ended"),
                Word(("-n", "--lines"), "begin with the last LINES lines (100)", "LINES", number=int),
                Word(("--raw",), "write every byte to a terminal too, control characters included"),
            ),
            "rmlaunch logs a -f -n 20",
        ),
        "metrics": Verb(
            "launcher.cli.logs:metrics",
            "print what its supervisor counts, as Prometheus reads it",
            (_name("running"),),
            "rmlaunch metrics a",
        ),
        "infer": Verb(
            "launcher.cli.ask:infer",
            "ask it once",
            (_name("running"), Word(("TEXT",), "give the prompt, or the text to embed"), _SAMPLING),
            'rmlaunch infer a "The capital of France is" max_tokens=8',
        ),
        "chat": Verb(
            "launcher.cli.ask:chat",
            "talk with it: a line each, until the end of the input",
            (_name("running"), _SAMPLING),
            "rmlaunch chat a temperature=0.7",
        ),
        "restart": Verb(
            "launcher.cli.restart:restart",
            "drain it and start it again",
            (_name("running"),),
            "rmlaunch restart a",
        ),
        "stop": Verb(
            "launcher.cli.stop:stop",
            "drain and stop deployments, and wait until nothing is left of them",
            (
                _names("running", "name the deployments"),
                Word(("--all",), "stop all that run"),
                Word(("--now",), "kill instead of draining"),
            ),
            "rmlaunch stop a b",
        ),
        "kill": Verb(
            "launcher.cli.stop:kill",
            "stop deployments without a drain, or without the rest of one",
            (_names("running", "name the deployments"), Word(("--all",), "kill all that run")),
            "rmlaunch kill a",
        ),
        "rm": Verb(
            "launcher.cli.remove:rm",
            "remove the records and logs of deployments that have ended",
            (
                _names("ended", "name the deployments"),
                Word(("--failed",), "remove all that have failed"),
                Word(("--all",), "remove all that have ended, those that were stopped too"),
            ),
            "rmlaunch rm --failed",
        ),
    },
    "one endpoint in front of all of them": {
        "gateway up": Verb(
            "launcher.cli.gateway:up",
            "start the gateway, or give one that runs its new settings",
            (
                Word(_OVERRIDES.names, _OVERRIDES.help, many=True, key="overrides", offers="gateway"),
                Word(("-d", "--detach"), "return when it serves; without it, stay until Ctrl-C"),
                Word(_REPLACE.names, "stop the one that runs, and start this one"),
            ),
            "rmlaunch gateway up -d 'gateway.routes.chat-main=[a,b]'",
        ),
        "gateway key": Verb(
            "launcher.cli.gateway:key",
            "make a key for a client, and print what to write into the config",
            (Word(("NAME",), "name whose key it is; admin for the gateway's own commands"),),
            "rmlaunch gateway key alice",
        ),
    },
    "what is kept": {
        "artifact list": Verb(
            "launcher.cli.artifacts:list_", "list what build steps have made", (_JSON,), "rmlaunch artifact list"
        ),
        "artifact show": Verb(
            "launcher.cli.artifacts:show",
            "tell what made one, and its log",
            (Word(("ID",), "give its id, or how that begins", offers="artifact"), _JSON),
            "rmlaunch artifact show smollm2-safetensors",
        ),
        "artifact prune": Verb(
            "launcher.cli.artifacts:prune",
            "remove what is left of builds that did not end",
            (
                Word(("--unused",), "remove those too that no deployment uses"),
                Word(("--older-than",), "of those, only what was made more than DAYS ago", "DAYS", number=float),
                _JSON,
            ),
            "rmlaunch artifact prune --unused",
        ),
        "env list": Verb(
            "launcher.cli.environments:list_",
            "list the environments of engines, with their size and who uses them",
            (_JSON,),
            "rmlaunch env list",
        ),
        "env create": Verb(
            "launcher.cli.environments:create",
            "make the environments of a launch ahead of it",
            (_OVERRIDES,),
            "rmlaunch env create engine=triton device=cpu",
        ),
        "env prune": Verb(
            "launcher.cli.environments:prune",
            "remove environments that were not made to the end",
            (
                Word(("--unused",), "remove those too that nobody uses"),
                Word(("--older-than",), "of those, only what was used last more than DAYS ago", "DAYS", number=float),
                _JSON,
            ),
            "rmlaunch env prune --unused",
        ),
        "image build": Verb(
            "launcher.cli.images:build",
            "make or fetch the image of a launch with runtime=docker",
            (_OVERRIDES,),
            "rmlaunch image build engine=llamacpp device=cpu",
        ),
        "image list": Verb(
            "launcher.cli.images:list_", "list the images that were built here", (_JSON,), "rmlaunch image list"
        ),
        "image prune": Verb(
            "launcher.cli.images:prune",
            "remove the images that no container is made from",
            (Word(("IMAGE",), "remove only these", many=True, key="images"),),
            "rmlaunch image prune",
        ),
    },
    "your shell": {
        "completion": Verb(
            "launcher.cli.completion:completion",
            "print the script that completes rmlaunch in bash, zsh or fish",
            (Word(("SHELL",), "name the shell, whose settings source what is printed", offers="bash|zsh|fish"),),
            "rmlaunch completion bash",
        ),
    },
}

#: what stands before a nested verb
GROUPS: Mapping[str, str] = {
    "gateway": "one OpenAI endpoint in front of all deployments",
    "artifact": "what build steps have made",
    "env": "the environments of engines",
    "image": "what runtime=docker runs",
}

VERBS: Mapping[str, Verb] = {name: verb for section in SECTIONS.values() for name, verb in section.items()}


def first_words() -> list[str]:
    """The words that a command can begin with: verbs and groups, each once, in the order of the overview."""
    return list(dict.fromkeys(name.partition(" ")[0] for name in VERBS))


def of_group(group: str) -> list[str]:
    """The verbs of `group`, without its own name."""
    return [name.partition(" ")[2] for name in VERBS if name.startswith(f"{group} ")]
