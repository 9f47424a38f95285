"""Mask secrets in everything that is printed or written down."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"
#: parts of a name, in capitals and between underscores, that make what it names a secret
_SECRET = re.compile(
    r"(^|_)(KEY|KEYS|APIKEY|TOKEN|PAT|AUTH|AUTHORIZATION|BEARER|COOKIE|SIGNATURE|CREDENTIALS?|CREDS?|HEADERS?)(_|$)"
    r"|SECRET|PASSW|PASSPHRASE|(^|_)(PASS|PW|PSW|PSK|JWT|DSN)(_|$)|_(AK|SK)(_|$)|(HF|ACCESS|AUTH|API)_?TOKENS?"
    r"|(?<!^)(?<!^OLD)PWD(_|$)"  # PWD and OLDPWD are folders
)
#: endings of names that are no secrets after all
_HARMLESS = re.compile(r"_(FILE|PATH|DIR|NAME)$")
#: a key of our own command line: engine.env.HF_TOKEN=…
_KEY = re.compile(r"[\w.+]+")
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|password|signature|credential)[\w-]*=)[^&\s]+")


def mask_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with the values of secrets masked, by the variables' names; over-masking beats a leak."""
    return {name: MASK if is_secret(name) else mask_url(value) for name, value in env.items()}


def is_secret(name: str) -> bool:
    """Return whether a variable, flag or key of this name holds a secret."""
    word = name.lstrip("-").replace("-", "_").upper()
    return bool(_SECRET.search(word)) and not _HARMLESS.search(word)


def mask_url(text: str) -> str:
    """Return `text` with the user, password and tokens of every URL masked."""
    return _QUERY.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", text))


def mask_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return `argv` with the values of secret flags and keys masked (`--api-key x` and `api_key=x`)."""
    masked: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        named = flag.startswith("-") or (equals and _KEY.fullmatch(flag))
        secret = bool(named) and is_secret(flag.rpartition(".")[2])
        if hide_next:
            masked.append(MASK)
        elif secret and equals:
            masked.append(f"{flag}={MASK}")
        else:
            masked.append(mask_url(word))
        hide_next = secret and not equals and not hide_next
    return tuple(masked)
