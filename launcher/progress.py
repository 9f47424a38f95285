"""Show the current stage and how long it takes, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from launcher import terminal


class Progress:
    """The stages of one launch; `seconds` holds how long each took, in order."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._stream = terminal.guarded(stream or sys.stderr)
        self._quiet = quiet
        self.live = not quiet and self._stream.isatty()  #: a terminal: one line, written over
        self._stage = ""
        self._started = 0.0

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Announce `text`; when the block ends, say how long it took."""
        self._stage, self._started = name, time.monotonic()
        self._show(text, end="" if self.live else "\n")
        try:
            yield
        finally:
            elapsed = time.monotonic() - self._started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
            if self.live:
                self._show(f"{text} · {elapsed:.1f} s", end="\n")

    def detail(self, text: str) -> None:
        """Show the newest line of a long stage's own output."""
        elapsed = time.monotonic() - self._started
        self._show(f"{text.strip()[:100]} · {elapsed:.0f} s", end="" if self.live else "\n")

    def note(self, text: str) -> None:
        """Show a fact that belongs to no stage."""
        if not self._quiet:
            self._stream.write(f"{text}\n")

    def _show(self, text: str, end: str) -> None:
        if self._quiet:
            return
        line = f"{self._stage:<12} {text}"
        if self.live:  # a line that wraps could not be cleared
            terminal.command(self._stream, "\r\x1b[K")
            line = terminal.shown(line)[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"{line}{end}")
        self._stream.flush()
