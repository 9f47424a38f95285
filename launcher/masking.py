"""Secrets out of everything that is printed or written down."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"
_SECRET = re.compile(
    # TOKEN, but not MAX_TOKENS or TOKENIZER: words that are counted or named are no secrets.
    r"TOKEN(?!S|IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|AUTHORIZATION|(API|ACCESS|PRIVATE)_?KEY",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|password)[\w-]*=)[^&\s]+")


def mask_env(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with the values of variables that are named like secrets hidden; over-masking beats a leak."""
    return {name: MASK if is_secret(name) else mask_url(value) for name, value in env.items()}


def is_secret(name: str) -> bool:
    """Whether a variable, a flag or a key of this name holds a secret."""
    return bool(_SECRET.search(name.replace("-", "_")))


def mask_url(text: str) -> str:
    """`text` without the user, password and tokens of any URL in it."""
    return _QUERY.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", text))


def mask_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv` without the values of flags that are named like secrets (`--api-key x` and `--api-key=x`)."""
    masked: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("-") and is_secret(flag) and not flag.endswith("-file")
        if hide_next:
            masked.append(MASK)
        elif secret and equals:
            masked.append(f"{flag}={MASK}")
        else:
            masked.append(mask_url(word))
        hide_next = secret and not equals and not hide_next
    return tuple(masked)
