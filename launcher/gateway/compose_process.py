"""From a command line's words and config files to the gateway's settings.

This loads Hydra, so the gateway's process runs it as another process.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence

from engines.base import ConfigError, RmLaunchError
from launcher.config import compose
from launcher.gateway.settings import Settings, hashed, settings

_KEY = re.compile(r"(\+*gateway\.(?:keys\.[^.=]+(?:\.key)?|admin_key))=(.+)")

_KEY_WITHIN = re.compile(r"^\s*\{.*(\bkey\s*:|:\s*[^{}\s])(?!.*sha256)")
_ELSEWHERE = re.compile(r"""null|(['"]?)\$\{.*\}\1""")


def composed(overrides: Sequence[str], config_dir: str | None) -> Settings:
    """Return the settings that `overrides` and the config files amount to. Raises `ConfigError`."""
    return settings(compose.compose_gateway(overrides, config_dir))


def without_keys(overrides: Sequence[str]) -> list[str]:
    """Return `overrides` with hashes in place of the keys that are written out in them: they are kept on disk.

    Raises `ConfigError` for a key that is written where it cannot be hashed.
    """
    kept = []
    for item in overrides:
        name, _, value = item.lstrip("+").partition("=")
        if name.startswith("gateway.keys") and _KEY_WITHIN.search(value):
            raise ConfigError(f"{name}: write gateway.keys.NAME=KEY, so that the key can be hashed before it is kept")
        found = _KEY.fullmatch(item)
        if found and not _ELSEWHERE.fullmatch(found[2]) and not found[2].startswith("{"):
            item = f"{found[1]}=sha256:{hashed(found[2].strip(chr(39) + chr(34)), found[1].lstrip('+'))}"
        kept.append(item)
    return kept


def main() -> None:
    """Read words as JSON from stdin, and print the settings as JSON; or say what is wrong, and exit with 1."""
    asked = json.load(sys.stdin)
    try:
        made = composed(asked["overrides"], asked["config_dir"])
    except RmLaunchError as exc:
        sys.exit(str(exc))
    json.dump(dataclasses.asdict(made), sys.stdout)


if __name__ == "__main__":
    main()
