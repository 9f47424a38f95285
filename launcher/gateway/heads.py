"""The head of the last message on a connection: the next one mostly has the same, and need not be parsed. No I/O.

Whoever speaks HTTP writes the same lines with every message, but for the length of its body. They are read by a strict
parser, for which a head ends with the first empty line, and an empty line is CR LF: what it has found in them holds for
each message that begins with the same bytes.
"""

from __future__ import annotations

#: the two ways to write the header that are known here; any other, and a value with spaces or zeros before it, goes
#: to the parser
_LENGTH, _LENGTH_TOO = b"\r\nContent-Length: ", b"\r\ncontent-length: "


class Head:
    """The bytes of a message's head, but for the digits of its body's length."""

    __slots__ = ("_after", "_before", "_length", "_start")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before  #: what stands before the digits
        self._start = len(before)
        self._after = after
        self._length = len(after)

    @classmethod
    def of(cls, data: bytes) -> Head | None:
        """Return the head of `data`; None where that is anything but one whole message that tells its length."""
        head, _, body = data.partition(b"\r\n\r\n")
        for length in (_LENGTH, _LENGTH_TOO):
            before, found, after = head.partition(b"%b%d" % (length, len(body)))
            if found and (not after or after.startswith(b"\r\n")):
                return cls(before + length, after + b"\r\n\r\n")
        return None

    def body(self, data: bytes) -> bytes | None:
        """Return the body of `data`; None where that is anything but one whole message with this head."""
        if not data.startswith(self._before):
            return None
        start = self._start
        end = data.find(self._after, start)
        body = data[end + self._length :]
        return body if end >= 0 and data[start:end] == b"%d" % len(body) else None
