"""Print the answers of commands: rows as a table, data as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row, columns aligned; nothing for no rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` to stdout with their columns aligned."""
    sys.stdout.write("".join(f"{line}\n" for line in table(rows)))
    sys.stdout.flush()


def print_fields(fields: Mapping[str, Any], log: Sequence[str]) -> None:
    """Print a line for each of `fields` that is not empty, then the last lines of a log."""
    for key, value in fields.items():
        if value not in ("", None, [], {}):
            sys.stdout.write(f"{key:<12} {json.dumps(value) if isinstance(value, (dict, list)) else value}\n")
    for line in log:
        sys.stdout.write(f"  | {line}\n")


def gib(count: int) -> str:
    """Return a number of bytes in words, as MiB or GiB: 512 MiB, 1.5 GiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def size(count: float) -> str:
    """Return a number of bytes in words, from the byte up: 5 B, 12 KiB, 3 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Return seconds in their largest unit: 3d, 2h, 5m, 7s."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def print_json(data: object) -> None:
    """Print `data` to stdout as JSON, indented by 2."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def print_endpoint(name: str, url: str, *, as_json: bool = False) -> None:
    """Write where the deployment `name` serves: `NAME URL`, or an object with both."""
    if as_json:
        print_json({"name": name, "endpoint": url})
    else:
        sys.stdout.write(f"{name} {url}\n")


def note(text: str) -> None:
    """Write one line for the person at the terminal: to stderr, so that stdout has answers alone."""
    sys.stderr.write(f"{text}\n")
