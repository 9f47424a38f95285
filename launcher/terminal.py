"""Print text of engines, clients and models to a terminal without the sequences that a terminal obeys.

A control sequence can rename the window, clear what stood there, or write to the clipboard; marks that change the
direction of text can make a command look like another. On a terminal both are written out instead of sent. A file or a
pipe gets every byte.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

#: characters that a terminal obeys: C0 but for tab and newline, DEL, C1, and the marks of direction
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """Return `text` with control characters written out, as `less` does: `^[`, `<U+202E>`.

    A carriage return ends a line: a progress bar is readable, and nothing is written over.
    """
    return _OBEYED.sub(_written, text.replace("\r\n", "\n").replace("\r", "\n"))


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"


class Terminal:
    """A text stream to a terminal; it writes out what the terminal would obey."""

    def __init__(self, stream: TextIO) -> None:
        self.obeying = stream  #: the stream itself, without the guard

    def write(self, text: str) -> int:
        """Write `text` as `shown` makes it; return the number of characters."""
        return self.obeying.write(shown(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines` as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.obeying, name)


def guarded(stream: TextIO) -> TextIO:
    """Return `stream`, wrapped in a `Terminal` if it leads to one; a second time changes nothing."""
    if isinstance(stream, Terminal) or not stream.isatty():
        return stream
    return cast(TextIO, Terminal(stream))


def command(stream: TextIO, sequence: str) -> None:
    """Send a control sequence of ours to `stream`."""
    (stream.obeying if isinstance(stream, Terminal) else stream).write(sequence)


def guard() -> None:
    """Guard stdout and stderr of this process for good, tracebacks and warnings included.

    A character that the stream cannot encode is written out (`\\u6f22`), on a terminal or not.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = guarded(sys.stdout), guarded(sys.stderr)


def byte_writer(raw: bool) -> Callable[[bytes], None]:
    """Return a function that writes bytes to stdout: unchanged if `raw` or no terminal is there, else `shown`."""
    decoder = None if raw or not sys.stdout.isatty() else codecs.getincrementaldecoder("utf-8")("replace")

    def write(data: bytes) -> None:
        if decoder is None:
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write(decoder.decode(data))
        sys.stdout.flush()

    return write
