"""Heads of messages that have been read before. No I/O.

Whoever speaks HTTP writes the same lines with every message, but for the length of its body: they are read once, by a
strict parser, and what it has found holds for each message that begins with the same bytes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

#: the ways in which the header is written; any other, and a value with spaces or zeros before it, goes to the parser
_LENGTH, _LENGTH_TOO = b"\r\nContent-Length: %d", b"\r\ncontent-length: %d"
#: ways to write a head that are kept: there are as many as clients, unless they write something new in each
_KEPT = 512


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """The head of `data` without the digits of its body's length, and the body; None where `data` is anything but one
    whole message that tells its length.

    Two of them that are equal but for these digits mean the same to a strict parser, for which a head ends with the
    first empty line, and an empty line is CR LF.
    """
    head, _, body = data.partition(b"\r\n\r\n")
    before, length, after = head.partition(_LENGTH % len(body))
    if not length:
        before, length, after = head.partition(_LENGTH_TOO % len(body))
    if not length or (after and not after.startswith(b"\r\n")):
        return None
    return _LENGTH.join((before, after)), body


class Heads(Generic[T]):
    """What the parser has found in heads, by the heads as `split` gives them.

    They are looked up by a hash with a key of this process, so that how long it takes tells nothing of a secret in one.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, T] = {}
        self.get = self._known.get
        self.forget = self._known.clear

    def keep(self, head: bytes, found: T) -> None:
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[head] = found
