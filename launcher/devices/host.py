"""Readers for device plugins: files below a root, PCI functions, the answers of vendors' tools.

Nothing here raises for what a machine may hold, and nothing waits without a limit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from launcher.inheritance import inherited

T = TypeVar("T")

#: bytes that are read of a file in /sys or /proc, and of a tool's answer
_FILE_LIMIT = 1 << 16
_ANSWER_LIMIT = 4 << 20
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


def within(seconds: float, function: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result of `function`, or None and the reason: it raised, or took longer than `seconds`.

    A driver that hangs keeps whoever reads its files, so the function has a thread of its own, which is left behind.
    """
    answers: queue.SimpleQueue[tuple[T | None, str]] = queue.SimpleQueue()

    def call() -> None:
        try:
            answers.put((function(), ""))
        except Exception as exc:  # noqa: BLE001  (vendors' libraries; one kind of device must not fell the others)
            answers.put((None, f"{type(exc).__name__}: {exc}"))

    threading.Thread(target=call, daemon=True, name="devices").start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None, f"no answer within {seconds:g} s"


# ------------------------------------------------------------------------------------------------------------- files


def text(path: Path) -> str | None:
    """Return the file's text as one line; None if it cannot be read or is empty."""
    try:
        with path.open("rb") as stream:
            return printable(stream.read(_FILE_LIMIT).decode(errors="replace"))
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def number(said: object, base: int = 10) -> int | None:
    """Return a whole number of at least 0, given as such or as text in `base`; None for anything else."""
    if isinstance(said, bool):
        return None
    if isinstance(said, int):
        return said if 0 <= said < 1 << 63 else None
    if not isinstance(said, str) or len(said) > 32:
        return None
    try:
        value = int(said.strip(), base)
    except ValueError:
        return None
    return value if 0 <= value < 1 << 63 else None


def printable(said: object) -> str | None:
    """Return `said` as one line of text; None if it is no text, or there is nothing in it."""
    if not isinstance(said, str):
        return None
    line = " ".join("".join(char if char.isprintable() else " " for char in said).split())
    return line or None


def names(folder: Path) -> list[str]:
    """Return the names in `folder`, in order; [] if it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return []


def indexed_nodes(folder: Path | str, pattern: str) -> list[int]:
    """Return the numbers that stand for the `*` of `pattern` in the names in `folder`, in order."""
    prefix, _, suffix = pattern.partition("*")
    middles = (
        name[len(prefix) : len(name) - len(suffix)]
        for name in names(Path(folder))
        if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
    )
    return sorted(int(middle) for middle in middles if _NUMBER.fullmatch(middle))


# --------------------------------------------------------------------------------------------------------------- PCI


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function on the PCI bus; `driver` is None if no driver is bound to it."""

    address: str  #: "0000:51:00.0"
    device: str  #: four hexadecimal digits
    function_class: str  #: "0x030200"
    driver: str | None


def pci_functions(root: Path, vendor: str) -> Iterator[PciFunction]:
    """Yield the functions of `vendor` (four hexadecimal digits), without those split into virtual functions."""
    folder = root / "sys/bus/pci/devices"
    for address in names(folder):
        place = folder / address
        if text(place / "vendor") != f"0x{vendor}" or number(text(place / "sriov_numvfs")):
            continue
        device = (text(place / "device") or "").removeprefix("0x")
        yield PciFunction(address, device, text(place / "class") or "", _link(place / "driver"))


def _link(path: Path) -> str | None:
    try:
        return path.readlink().name or None
    except OSError:
        return None


# ------------------------------------------------------------------------------------------------------------- tools


@dataclass(frozen=True, slots=True)
class Said:
    """A tool's answer; `code` is None if it did not end, and `failed` says why there is no answer."""

    out: bytes = b""
    code: int | None = None
    failed: str = ""


def find_tool(root: Path, folders: Sequence[str], name: str) -> Path | None:
    """Return the program `name` below `root`, in `folders` or on the PATH; None if there is none."""
    on_path = [folder for folder in os.environ.get("PATH", os.defpath).split(":") if folder.startswith("/")]
    for folder in (*folders, *on_path):
        program = root / folder.lstrip("/") / name
        if os.access(program, os.X_OK) and program.is_file():
            return program
    return None


def ask(argv: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None) -> Said:
    """Run a program that only reports, for at most `limit_s`; `env` None is what engines inherit."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**(inherited(os.environ) if env is None else env), "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as exc:
        return Said(failed=exc.strerror or str(exc))
    deadline = time.monotonic() + limit_s
    try:
        assert process.stdout is not None
        out, whole = _read(process.stdout.fileno(), deadline)
        if not whole:
            return Said(out, failed=f"did not end within {limit_s:g} s or said more than {_ANSWER_LIMIT >> 20} MiB")
        try:
            code = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Said(out, failed=f"did not end within {limit_s:g} s")
        return Said(out, code)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # a process that the driver holds does not end: it is left behind
        if process.stdout is not None:
            process.stdout.close()


def _read(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """Return the bytes that come until `deadline`, and whether they are all."""
    pieces: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while size < _ANSWER_LIMIT and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                if not (piece := os.read(descriptor, 1 << 16)):
                    return b"".join(pieces), True
                pieces.append(piece)
                size += len(piece)
    return b"".join(pieces), False
