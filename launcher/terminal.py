"""What a terminal is shown: the words of engines, clients and models as they are, but for what a terminal obeys.

A sequence of control characters can rename its window, clear what stood there, or write to its clipboard; marks that
change the direction of text can make a command look like another. On a terminal both are shown instead of sent. A file
or a pipe gets every byte.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

#: C0 but for tab and newline, DEL, C1, and the marks of direction
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """`text` with what a terminal would obey written out, as `less` does: `^[`, `<U+202E>`.

    A carriage return ends a line: a progress bar is readable, and nothing is written over.
    """
    return _OBEYED.sub(_written, text.replace("\r\n", "\n").replace("\r", "\n"))


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"


class Terminal:
    """A text stream that leads to a terminal, which is `shown` what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.obeying = stream  #: the same without the guard

    def write(self, text: str) -> int:
        return self.obeying.write(shown(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.obeying, name)


def guarded(stream: TextIO) -> TextIO:
    """`stream`, as a `Terminal` where it leads to one; a second time changes nothing."""
    if isinstance(stream, Terminal) or not stream.isatty():
        return stream
    return cast(TextIO, Terminal(stream))


def command(stream: TextIO, sequence: str) -> None:
    """Send a control sequence of ours to `stream`."""
    (stream.obeying if isinstance(stream, Terminal) else stream).write(sequence)


def guard() -> None:
    """Whatever this process prints from now on, tracebacks and warnings too, a terminal is shown.

    A character that a stream cannot have is written out there (`\\u6f22`), on a terminal or not.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = guarded(sys.stdout), guarded(sys.stderr)


def byte_writer(raw: bool) -> Callable[[bytes], None]:
    """What writes bytes to stdout: as they are with `raw` or where no terminal is, else `shown`, in UTF-8."""
    decoder = None if raw or not sys.stdout.isatty() else codecs.getincrementaldecoder("utf-8")("replace")

    def write(data: bytes) -> None:
        if decoder is None:
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write(decoder.decode(data))
        sys.stdout.flush()

    return write
