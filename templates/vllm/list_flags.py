"""Print every flag of the installed vLLM as JSON: templates/vllm/flags-*.json are made with it.

    <environment>/bin/python list_flags.py > flags-0.32.0.json

Flags that a platform plugin adds are among them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any


def list_flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Return long name without leading dashes → the values that it takes."""
    flags: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        if names and not isinstance(action, argparse._HelpAction):
            name, *others = names
            flags[name] = _describe(action, f"no-{name}" in others)
            if aliases := [other for other in others if other != f"no-{name}"]:
                flags[name]["aliases"] = aliases
    return dict(sorted(flags.items()))


def _describe(action: argparse.Action, negative: bool) -> dict[str, Any]:
    if action.nargs == 0:
        return {"kind": "bool", "negative": True} if negative else {"kind": "bool"}
    said: dict[str, Any] = {"kind": _kind(action.type)}
    # A type of the flag's own may spell a choice in several ways; only plain ones can be compared.
    if action.choices and said["kind"] in ("str", "int") and getattr(action.type, "__name__", "") != "<lambda>":
        said["choices"] = [choice for choice in action.choices if choice is not None]
    if action.nargs in ("+", "*"):
        said["many"] = True
    elif isinstance(action, argparse._AppendAction):
        said["repeated"] = True
    return said


def _kind(convert: Any) -> str:
    """Return int, float, size (1k, 2G), size_or_auto, json, str_or_json or str: `convert` is tried on samples."""
    if convert is None:
        return "str"
    if _converted(convert, "x") is not None:
        return "str_or_json" if isinstance(_converted(convert, "{}"), dict) else "str"
    if _converted(convert, "1k") == 1000:
        return "size" if _converted(convert, "auto") is None else "size_or_auto"
    if _converted(convert, "1.5") == 1.5 and _converted(convert, "[]") is None:
        return "float"
    if _converted(convert, "1") == 1 and _converted(convert, "[]") is None:
        return "int"
    return "json"


def _converted(convert: Callable[[str], Any], text: str) -> Any:
    try:
        return convert(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return None


def _real_parser() -> argparse.ArgumentParser:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.30
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


def render(version: str, flags: Mapping[str, Mapping[str, Any]]) -> str:
    """Return JSON with a flag on each line, so that two versions can be compared by eye."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(said)}" for name, said in flags.items())
    return f'{{"vllm": {json.dumps(version)}, "flags": {{\n{lines}\n}}}}\n'


def main() -> None:
    """Print the flags of the vLLM in this environment to stdout."""
    with contextlib.redirect_stdout(sys.stderr):  # vLLM logs to stdout
        import vllm

        flags = list_flags(_real_parser())
    print(render(vllm.__version__.partition("+")[0], flags), end="")


if __name__ == "__main__":
    main()
