"""Files that a server writes and we read: it may have put anything in their place."""

from __future__ import annotations

import os
import stat


def read_written(path: str, most_bytes: int) -> bytes:
    """Return what is in the regular file `path`; the folder that it is in must not be the server's to replace.

    Raises `OSError` where it is a link, a pipe or a device, or holds more than `most_bytes`. Never waits.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:  # noqa: PTH123  (a descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        text = stream.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise OSError(f"it is larger than {most_bytes} bytes")
    return text
