"""Suggest the nearest known name for an unknown one."""

from __future__ import annotations

from collections.abc import Sequence


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return the message for an unknown name: `engine 'vlm' not found; did you mean 'vllm'? available: …`."""
    return f"{what} {name!r} not found; {did_you_mean(name, known)}available: {', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return `did you mean 'x'? `, or an empty text if nothing is near; `prefix` goes before the shown name."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"did you mean {prefix + near[0]!r}? " if near else ""
