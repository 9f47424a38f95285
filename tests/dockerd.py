"""A Docker daemon for the tests: one of their own, on a private socket and data folder, unless one answers already.

Its images are made from a Debian that debootstrap puts together, since no registry can be reached. Root file system and
data folder are kept in the cache folder; nothing needs them to be there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TextIO

import docker

from launcher.paths import _xdg
from launcher.runtimes import docker_daemon
from launcher.runtimes.docker_daemon import AwayError
from tests.supervision import reserve

_PR_SET_PDEATHSIG = 1
_UP_S = 30.0
_DOWN_S = 30.0
_PROGRAMS = ("dockerd", "debootstrap", "iptables", "ip")

#: what engines load and a bare Debian lacks is in it, so that no test fetches packages while it builds
_PACKAGES = ("python3", "ca-certificates", "libgomp1", "libpython3.11")
_RELEASE = "bookworm"
BASE = f"rmlaunch-test/base:{hashlib.sha256(repr((_RELEASE, _PACKAGES)).encode()).hexdigest()[:12]}"

#: the program that runs the tests' own little servers in `BASE`
PYTHON = "/usr/bin/python3"


def missing() -> str:
    """Why no daemon can be had here; empty where one can."""
    if _answers(docker_daemon.address()):
        return ""
    if os.geteuid() != 0:
        return "no Docker daemon answers, and starting one takes root"
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"there is no {', '.join(lacking)} here" if lacking else ""


class Daemon:
    """`own` says that it is ours to stop and start; `host` is what DOCKER_HOST must be."""

    def __init__(self, host: str, data: Path | None, folder: Path) -> None:
        self.host = host
        self.own = data is not None
        self._data = data
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        if not self.own:
            return
        words = ["dockerd", "--host", self.host, "--data-root", str(self._data)]
        words += [
            "--bridge",
            _bridge(),
            "--exec-root",
            str(self._folder / "exec"),
            "--pidfile",
            str(self._folder / "pid"),
        ]
        words += options
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_us
            )
        deadline = time.monotonic() + _UP_S
        while not _answers(self.host):
            said = (self._folder / "log").read_text()[-2000:]
            assert self._process.poll() is None, f"dockerd ended: {said}"
            assert time.monotonic() < deadline, f"dockerd does not answer: {said}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            self._process.wait(_DOWN_S)
            self._process = None
            _ip("link", "delete", _bridge())

    def ensure(self) -> None:
        """Start it again if it has ended: tests of the process runtime end every child of theirs, and it is one."""
        if not _answers(self.host):
            self.stop()
            self.start()

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    def client(self) -> docker.APIClient:
        return docker_daemon.client(self.host)

    def has(self, image: str) -> bool:
        with contextlib.closing(self.client()) as client:
            return bool(client.images(name=image))


@contextlib.contextmanager
def running() -> Iterator[Daemon]:
    """A daemon with the image `BASE`."""
    folder = Path(tempfile.mkdtemp(prefix="rml-dockerd-"))
    cache = _xdg("XDG_CACHE_HOME", ".cache") / "rmlaunch" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    with _free_data(cache) as data:
        if _answers(docker_daemon.address()):
            daemon = Daemon(docker_daemon.address(), None, folder)
        else:
            daemon = Daemon(f"unix://{folder}/docker.sock", data, folder)
        try:
            daemon.start()
            if daemon.own:
                _tidy(daemon)
            if not daemon.has(BASE):
                _import_base(daemon, cache)
            yield daemon
        finally:
            daemon.stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _free_data(cache: Path) -> Iterator[Path]:
    """The first data folder that no other run of the tests has: a second run waits for none, and makes images anew."""
    for number in itertools.count(1):
        data = cache / ("docker" if number == 1 else f"docker-{number}")
        with data.with_suffix(".lock").open("w") as lock:
            if _is_ours(lock):
                yield data
                return


def _is_ours(lock: TextIO) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _tidy(daemon: Daemon) -> None:
    """Remove what tests that were killed have left in our data folder."""
    with contextlib.closing(daemon.client()) as client:
        for one in client.containers(all=True):
            client.remove_container(one["Id"], force=True, v=True)


def _import_base(daemon: Daemon, cache: Path) -> None:
    name, tag = BASE.split(":")
    archive = cache / f"{_RELEASE}-{tag}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(prefix="rml-debian-") as root:
            words = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _RELEASE, root]
            made = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            assert made.returncode == 0, f"debootstrap: {made.stdout[-1000:]}{made.stderr[-1000:]}"
            partial = archive.with_suffix(f".{os.getpid()}.partial")
            with tarfile.open(partial, "w") as packed:
                packed.add(root, ".")
            partial.rename(archive)
    with contextlib.closing(daemon.client()) as client:
        client.import_image_from_file(str(archive), repository=name, tag=tag)


def _bridge() -> str:
    """A network of this run alone: on Docker's own, what a killed daemon left would answer to new addresses."""
    name = f"rml-{os.getpid()}"
    if not Path(f"/sys/class/net/{name}").exists():
        _ip("link", "add", "name", name, "type", "bridge")
        _ip("address", "add", f"172.31.{_subnet()}.1/24", "dev", name)
        _ip("link", "set", name, "up")
    return name


@cache
def _subnet() -> int:
    """The third number of the addresses of this run's network, which no other run's has."""
    for number in range(250):
        with contextlib.suppress(OSError):
            reserve(f"network {number}")
            return number
    raise AssertionError("250 runs of the tests have all networks; end some")


def _ip(*words: str) -> None:
    command = ["ip", *words]
    subprocess.run(command, check=True)


def _end_with_us() -> None:
    """In the child: TERM when the tests are killed, for only a daemon that ends in order takes its containers along."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _answers(host: str) -> bool:
    try:
        docker_daemon.ping(host)
    except AwayError:
        return False
    return True
