"""Docker's daemon: whether it answers, a client of it, and its refusals in words that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from engines.base import DeploymentError, ResourceError
from launcher.masking import mask_url

if TYPE_CHECKING:
    from docker import APIClient

T = TypeVar("T")

_PING_LIMIT_S = 2.0
_CALL_LIMIT_S = 60.0

#: seconds after which a daemon that is restarted, for an update or a new setting, is back
BACK_S = 60.0
_BACK_PERIOD_S = 0.2


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal of the daemon, and the message that users get for it."""

    pattern: str  #: a regular expression for what the daemon says (20.10 to 28)
    sentence: str  #: the message; {0}, {1} are the pattern's groups


REFUSALS = (
    Refusal(r"container name \"?/?([^\" ]+)\"? is already in use by container \"?(\w{12})",
            "the container name {0} is taken by container {1}, which is none of this deployment's; choose another "
            "name=…, or remove it (docker rm {1})"),
    Refusal(r"(?:Bind for|listen tcp4?) (\S+?):? (?:failed: port is already allocated|bind: address already in use)",
            "its port is taken ({0}) by another program; choose another port, or leave it out"),
    Refusal(r"could not select device driver \"+(?:nvidia)?\"* with capabilities: \[\[gpu",
            "Docker's daemon has no NVIDIA runtime; install nvidia-container-toolkit, run `nvidia-ctk runtime "
            "configure --runtime=docker` and restart Docker"),
    Refusal(r"could not select device driver \"cdi|CDI device injection failed|unresolvable CDI devices",
            "Docker's daemon cannot give devices by their CDI names; it takes Docker 25 and the vendor's specification "
            "in /etc/cdi or /var/run/cdi; with older ones use runtime.devices=nodes"),
    Refusal(r"error gathering device information while adding custom device \"([^\"]+)\"",
            "the device node {0} is not on this machine; check device.ids and the driver"),
    Refusal(r"bind source path does not exist: (\S+)",
            "{0} is to be seen in the container and is not on this machine; check model.source and runtime.mounts"),
    Refusal(r"network (\S+) not found",
            "Docker has no network {0}; set runtime.network to one of `docker network ls`"),
    Refusal(r"exec: \"?([^\" :]+)\"?: (?:executable file not found|stat|no such file)",
            "the image has no program {0}; check engine.program, engine.layouts and the image"),
    Refusal(r"[Nn]o such image: (\S+)",
            "the image {0} is not here any more; launch again, which fetches or builds it"),
    Refusal(r"no space left on device",
            "the disk of Docker's own folder is full; free some with `docker system prune`"),
    Refusal(r"[Mm]inimum memory limit allowed is (\S+)",
            "runtime.memory is less than {0}, the least that Docker can limit"),
    Refusal(r"[Rr]ange of CPUs is from (\S+) to (\S+),",
            "runtime.cpus is not from {0} to {1}, which this machine has"),
)  # fmt: skip


class AwayError(ResourceError):
    """No daemon answers."""


def address() -> str:
    """Return the daemon's address, as Docker's own tools are told it."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def ping(daemon: str) -> str:
    """Return the daemon's own words for itself. Raises `AwayError` with the reason if none answers.

    Does without Docker's SDK, which takes a tenth of a second to import.
    """
    instead = "set DOCKER_HOST to unix:///path/of/its/socket, or use runtime=process"
    try:
        place = urlsplit(daemon)
        path = os.fsencode(place.path)
    except ValueError as exc:
        raise AwayError(f"DOCKER_HOST={mask_url(daemon)!a} is no address; {instead}") from exc
    if place.scheme != "unix":
        raise AwayError(
            f"DOCKER_HOST={mask_url(daemon)} is no Unix socket: a container of another machine sees neither the "
            f"folders nor the ports of this one; {instead}"
        )
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PING_LIMIT_S)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(4096).decode(errors="replace")
    except PermissionError as exc:
        raise AwayError(
            f"this user may not open Docker's socket {place.path}; add yourself to its group (usermod -aG docker "
            f"$USER, and log in again), or {instead}"
        ) from exc
    except FileNotFoundError as exc:
        raise AwayError(
            f"no Docker daemon answers at {daemon}: there is no such socket; start Docker, {instead}"
        ) from exc
    except OSError as exc:
        raise AwayError(
            f"no Docker daemon answers at {daemon}: {exc.strerror or exc}; start Docker, {instead}"
        ) from exc
    status, *headers = answer.splitlines() or [""]
    if " 200 " not in f"{status} ":
        raise AwayError(f"{daemon} answered {status[:60]!r}, which is no Docker daemon; {instead}")
    told = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in headers)}
    return f"daemon at {place.path}, API {told.get('api-version', 'unknown')}"


def client(daemon: str, timeout_s: float | None = _CALL_LIMIT_S) -> APIClient:
    """Return a client for one thread; `timeout_s` None waits for ever. Raises `AwayError`."""
    ping(daemon)
    from docker import APIClient

    with explained():
        # None waits for as long as it takes; the SDK's types do not know it.
        return APIClient(base_url=daemon, version="auto", timeout=timeout_s)  # type: ignore[arg-type]


def runtimes(daemon: str) -> Sequence[str]:
    """Return the names of the OCI runtimes that the daemon has: runc, and nvidia if its toolkit is set up."""
    connected = client(daemon)
    with contextlib.closing(connected), explained():
        return sorted(connected.info().get("Runtimes", {}))


def when_back(attempt: Callable[[], T], limit_s: float = BACK_S) -> T:
    """Return the result of `attempt`, which is made again while no daemon answers, at most for `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return attempt()
        except AwayError:  # noqa: PERF203  (it is waited for)
            if time.monotonic() > deadline:
                raise
            time.sleep(_BACK_PERIOD_S)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the SDK's errors into an `AwayError`, or a `DeploymentError` in one sentence with its remedy."""
    import docker.errors
    import requests
    import urllib3

    # The last two come when the daemon goes away in the middle of an answer.
    gone = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError,
            urllib3.exceptions.HTTPError)  # fmt: skip
    try:
        yield
    except gone as exc:
        raise AwayError(f"Docker's daemon does not answer: {_innermost(exc)}") from exc
    except docker.errors.APIError as exc:
        raise DeploymentError(refusal(str(exc.explanation or exc))) from exc
    except docker.errors.DockerException as exc:
        # A new client asks for the daemon's version, and wraps any failure of that in this exception.
        if "server API version" in str(exc):
            raise AwayError(f"Docker's daemon does not answer: {_innermost(exc)}") from exc
        raise DeploymentError(f"Docker's SDK refuses: {exc}") from exc


def _innermost(exc: BaseException) -> str:
    while exc.__cause__ or exc.__context__:
        exc = exc.__cause__ or exc.__context__ or exc
    return str(exc) or type(exc).__name__


def refusal(said: str) -> str:
    """Return the daemon's words, after our sentence for them if there is one."""
    quoted = " ".join(said.split())[:300]
    for known in REFUSALS:
        if match := re.search(known.pattern, said):
            return f"{known.sentence.format(*match.groups())} (Docker: {quoted})"
    return f"Docker refuses: {quoted}"
