"""The nearest name to one that is not known."""

from __future__ import annotations

from collections.abc import Sequence


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`engine 'vlm' not found; did you mean 'vllm'? available: …`"""
    return f"{what} {name!r} not found; {did_you_mean(name, known)}available: {', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """`did you mean 'x'? `, or nothing where nothing is near; `prefix` stands before the name that is shown."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"did you mean {prefix + near[0]!r}? " if near else ""
