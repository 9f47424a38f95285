"""A container's output, written to the deployment's own log as it comes."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import DeploymentError
from launcher.runtimes import docker_daemon
from launcher.runtimes.docker_daemon import AwayError, explained

if TYPE_CHECKING:
    from docker import APIClient

#: seconds before the last line in our log, from which Docker's copy of the log is compared with it
_OVERLAP_S = 1.0
_OVERLAP_BYTES = 1 << 20
_AWAY_PERIOD_S = 0.2  #: between two tries to follow it again


class DockerLog:
    """A thread that follows one container until it ends; with `resume` it goes on where `log` ends."""

    def __init__(self, container: str, daemon: str, log: Path, resume: bool) -> None:
        self._container = container
        self._daemon = daemon
        self._log = log
        self._closed = threading.Event()
        if not resume:
            log.touch()
        self._thread = threading.Thread(target=self._follow, args=(resume,), name="container's log", daemon=True)
        self._thread.start()

    def finish(self, limit_s: float) -> None:
        """Wait until everything that an ended container has said is written, at most `limit_s`."""
        self._closed.set()
        self._thread.join(limit_s)

    def _follow(self, resume: bool) -> None:
        while True:
            try:
                client = docker_daemon.client(self._daemon, timeout_s=None)
                with contextlib.closing(client), explained():
                    since = self._catch_up(client) if resume else None
                    for chunk in client.logs(self._container, stream=True, follow=True, since=since):
                        self._write(chunk)
                    # A stream that the daemon breaks off ends like one of a container that has ended.
                    if not client.inspect_container(self._container)["State"]["Running"]:
                        return
            except AwayError:
                pass  # the daemon is waited for
            except DeploymentError:
                return  # the container is gone
            if self._closed.wait(_AWAY_PERIOD_S):
                return
            resume = True  # Docker keeps the log over a restart of its daemon

    def _catch_up(self, client: APIClient) -> float:
        """Write what was said while nobody listened; return until when that was (epoch seconds)."""
        try:
            last = self._log.stat().st_mtime
            with self._log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - _OVERLAP_BYTES))
                written = stream.read()
        except OSError:
            last, written = 0.0, b""
        now = time.time()
        said = client.logs(self._container, since=max(1.0, last - _OVERLAP_S), until=now)
        self._write(said[_overlap(written, said) :])
        return now

    def _write(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError), self._log.open("ab", buffering=0) as stream:  # its disk may be full
            stream.write(chunk)


def _overlap(written: bytes, said: bytes) -> int:
    """Return how many bytes of `said`, whole lines or all of it, are the end of `written`.

    The time it takes grows with the number of bytes alone, whatever they are: a container says what it likes.
    """
    most = min(len(said), len(written))
    borders = _borders(said[:most] + written[len(written) - most :])
    end = borders[-1]
    while end > most or not (end in (0, len(said)) or said[end - 1 : end] == b"\n"):
        end = borders[end]
    return end


def _borders(text: bytes) -> array[int]:
    """Return how many bytes, for each beginning of `text`, are both its own beginning and its end (but not all of it).

    The beginning of no bytes is the first. This is the table of Knuth, Morris and Pratt.
    """
    found = array("l", (0, 0) if text else (0,))
    length = 0
    for byte in memoryview(text)[1:]:
        while length and byte != text[length]:
            length = found[length]
        length += byte == text[length]
        found.append(length)
    return found
