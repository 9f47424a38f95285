"""Secrets out of everything that is printed or written down."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def mask_env(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with the values of variables that are named like secrets hidden; over-masking beats a leak."""
    return {name: MASK if _SECRET.search(name) else mask_url(value) for name, value in env.items()}


def mask_url(text: str) -> str:
    """`text` without the user and password of any URL in it."""
    return _USERINFO.sub(f"{MASK}@", text)


def mask_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv` without the values of flags that are named like secrets (`--api-key x` and `--api-key=x`)."""
    masked: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("-") and bool(_SECRET.search(flag.replace("-", "_"))) and not flag.endswith("-file")
        if hide_next and not word.startswith("-"):
            masked.append(MASK)
        elif secret and equals:
            masked.append(f"{flag}={MASK}")
        else:
            masked.append(mask_url(word))
        hide_next = secret and not equals
    return tuple(masked)
