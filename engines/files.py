"""Files that a server writes and we read: it may have put anything in their place."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


def opened(path: str) -> BinaryIO:
    """Open the regular file `path` to be read. Never waits, and follows no link at its end.

    Raises `OSError`, without a number for a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        stream = open(descriptor, "rb")  # noqa: PTH123, SIM115  (a descriptor; whoever asked closes it)
    except OSError:  # a folder, which leaves it open
        os.close(descriptor)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError("it is no regular file")
    return stream


def read_written(path: str, most_bytes: int) -> bytes:
    """Return the bytes of the regular file `path`, whose folder must not be the server's to replace.

    Raises `OSError` for a link, a pipe or a device, and if there are more than `most_bytes`. Never waits.
    """
    with opened(path) as stream:
        text = stream.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise OSError(f"it is larger than {most_bytes} bytes")
    return text
