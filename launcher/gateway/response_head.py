"""The heads of the answers that clients get, but for the lines that each answer has of its own. No I/O."""

from __future__ import annotations

from http import HTTPStatus

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def first_lines(status: int, date_header: bytes, content_type: str) -> bytes:
    """Return the first lines of a whole answer's head."""
    line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()
    return b"%b%bcontent-type: %b\r\n" % (line, date_header, content_type.encode())


def of_stream(date_header: bytes, extra: bytes, *, chunks: bool, last: bool) -> bytes:
    """Return the head of a stream of events; `extra` are further lines.

    `chunks`: the client knows chunked answers; `last`: the connection closes after this one.
    """
    framing = b"transfer-encoding: chunked\r\n" if chunks else b""
    if last:
        framing += b"connection: close\r\n"
    return (
        b"HTTP/1.1 200 OK\r\n" + date_header + b"content-type: text/event-stream\r\n"
        b"cache-control: no-cache\r\nx-accel-buffering: no\r\n" + extra + framing + b"\r\n"
    )
