"""Remove folders that a program has filled: no link is followed, and no folder is too deep."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LOOKED_AT = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(root: Path) -> None:
    """Remove the folder `root` with all that is in it. A link in its place stays, and so does what cannot be removed.

    `shutil.rmtree` calls itself for each folder in a folder, and ends with a `RecursionError` in the thousandth. Here
    inner folders are moved up into `root` and taken in turn.
    """
    with contextlib.suppress(OSError):
        _opened_up(os.fspath(root), None)
        top = os.open(root, _FOLDER)
        try:
            names = os.listdir(top)  # noqa: PTH208  (by a descriptor)
            for name in names:  # the list grows
                names += _emptied(name, top)
        finally:
            os.close(top)
        root.rmdir()


def _emptied(name: str, top: int) -> Iterator[str]:
    """Remove `name` from the folder `top`; yield the new names of the folders that were in it."""
    with contextlib.suppress(OSError):
        if not _opened_up(name, top):
            os.unlink(name, dir_fd=top)
            return
        folder = os.open(name, _FOLDER, dir_fd=top)
        try:
            for inner in os.listdir(folder):  # noqa: PTH208
                with contextlib.suppress(OSError):
                    if _opened_up(inner, folder):
                        moved = f"rml-{os.urandom(8).hex()}"  # `secrets` would load OpenSSL
                        os.rename(inner, moved, src_dir_fd=folder, dst_dir_fd=top)
                        yield moved
                    else:
                        os.unlink(inner, dir_fd=folder)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _opened_up(name: str, folder: int | None) -> bool:
    """Give the owner all rights in the folder `name` (seen from the descriptor `folder`); False if it is no folder."""
    try:
        found = os.open(name, _LOOKED_AT, dir_fd=folder)
    except NotADirectoryError:  # a link, too
        return False
    try:
        with contextlib.suppress(OSError):  # another owner's
            Path(f"/proc/self/fd/{found}").chmod(0o700)  # by its name, it would go through a link that came since
    finally:
        os.close(found)
    return True
