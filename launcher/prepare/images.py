"""Get images: present, pulled, or built from the packages that an engine's config pins."""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engines.base import Container, DeploymentError, ImageBuild, PrepareError, RmLaunchError
from launcher.atomic import locked
from launcher.output import gib
from launcher.paths import cache_root
from launcher.prepare import environments
from launcher.progress import Progress
from launcher.runtimes import docker_daemon
from launcher.runtimes.docker_daemon import AwayError, explained

if TYPE_CHECKING:
    from docker import APIClient

#: end of an incomplete archive: without it Docker would take the beginning for all
_NO_TAR = b"\xff" * 1024

#: label on every image that is built here; its value is the tag
LABEL = "rmlaunch.image"


def ensure(container: Container, progress: Progress) -> None:
    """Pull or build the image of `container` if it is missing.

    Raises `PrepareError`, or `AwayError` where no daemon answers.
    """
    with contextlib.closing(docker_daemon.client(container.daemon)) as client:
        there = _is_there(client, container.image)
        if container.build is not None:
            if not there:
                build(client, container.image, container.build, progress)
        elif container.pull == "always" or (container.pull == "missing" and not there):
            pull(client, container.image, progress)
        elif not there:
            raise PrepareError(
                f"the image {container.image} is not here, and runtime.pull=never; docker pull or docker load it, or "
                "leave runtime.pull out"
            )


def is_there(daemon: str, image: str) -> bool:
    """Return whether the daemon at that address has the image. Raises `AwayError` if it does not answer."""
    with contextlib.closing(docker_daemon.client(daemon)) as client:
        return _is_there(client, image)


def _is_there(client: APIClient, image: str) -> bool:
    import docker.errors

    with explained():
        try:
            client.inspect_image(image)  # type: ignore[no-untyped-call]
        except docker.errors.ImageNotFound:
            return False
    return True


# -------------------------------------------------------------------------------------------------------------- pull


def pull(client: APIClient, image: str, progress: Progress) -> None:
    """Pull `image` from its registry. Raises `PrepareError` with the registry's answer."""
    layers = Layers()
    with progress.stage("image", f"pulling {image}"):
        try:
            with explained():
                for event in client.pull(image, stream=True, decode=True):
                    if "error" in event:
                        raise PrepareError(_not_pulled(image, str(event["error"])))
                    if layers.heard(event):
                        progress.detail(str(layers))
        except (DeploymentError, AwayError) as exc:
            raise PrepareError(_not_pulled(image, str(exc))) from exc


def _not_pulled(image: str, said: str) -> str:
    return (
        f"the image {image} is not here and cannot be pulled: {' '.join(said.split())[:300]}; connect, `docker login`, "
        "load it with `docker load`, or set runtime.image to one that is here"
    )


class Layers:
    """The progress of a pull, from Docker's events about each layer."""

    def __init__(self) -> None:
        self._bytes: dict[str, tuple[int, int]] = {}  # layer → bytes that are here, and all
        self._done: set[str] = set()
        self._shown = ""

    def heard(self, event: Mapping[str, Any]) -> bool:
        """Take in an event; return whether the progress shown to a person has changed."""
        layer, status = event.get("id"), event.get("status", "")
        if not layer or status.startswith("Pulling from"):
            return False
        size = event.get("progressDetail") or {}
        self._bytes.setdefault(layer, (0, 0))
        if status == "Downloading" and size.get("total"):
            self._bytes[layer] = int(size["current"]), int(size["total"])
        if status in ("Download complete", "Pull complete"):
            self._bytes[layer] = (self._bytes[layer][1],) * 2
        if status in ("Pull complete", "Already exists"):
            self._done.add(layer)
        news, self._shown = str(self) != self._shown, str(self)
        return news

    def __str__(self) -> str:
        here, total = (sum(numbers) for numbers in zip(*self._bytes.values(), strict=True))
        return f"{len(self._done)} of {len(self._bytes)} layers, {gib(here)} of {gib(total)}"


# ------------------------------------------------------------------------------------------------------------- build


def build(client: APIClient, image: str, how: ImageBuild, progress: Progress) -> None:
    """Build `image` by its Dockerfile. Raises `PrepareError` with the step that failed."""
    environments.ensure(how.environment, progress)
    lock = cache_root() / "images" / f".{image.replace('/', '-')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.stage("image", f"building {image} on {how.base}"),
        locked(lock, lambda: progress.detail("waiting for another launch that builds the same")),
    ):
        if not _is_there(client, image):
            _build(client, image, how, progress)


def _build(client: APIClient, image: str, how: ImageBuild, progress: Progress) -> None:
    said: list[str] = []
    arguments = {"BASE": how.base, "PYTHON": how.environment.python, "LIBRARIES": how.libraries}
    try:
        with _context(Path(how.environment.path), how.dockerfile) as context, explained():
            events = client.build(
                fileobj=context, custom_context=True, tag=image, buildargs=arguments, rm=True, forcerm=True,
                decode=True, labels={LABEL: image},
            )  # fmt: skip
            for event in events:
                text = str(event.get("stream") or event.get("status") or event.get("error") or "").strip()
                if text:
                    said.append(text)
                if "error" in event:
                    last = "\n  | ".join(said[-8:])
                    raise PrepareError(
                        f"could not build {image} on {how.base}:\n  | {last}; "
                        "runtime.base names another base, and runtime.image an image of yours"
                    )
                if text.startswith("Step "):
                    progress.detail(text.splitlines()[0])
    except (DeploymentError, AwayError) as exc:
        raise PrepareError(f"could not build {image} on {how.base}: {exc}") from exc


def _readable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Let everybody read the file: its maker's umask kept it private, and another user may run in the container."""
    info.mode |= 0o555 if info.isdir() or info.mode & 0o100 else 0o444
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


@contextlib.contextmanager
def _context(environment: Path, dockerfile: str) -> Iterator[BinaryIO]:
    """Yield the build's context as a stream of a tar archive, which is written while Docker reads it, never to disk."""
    reading, writing = os.pipe()
    failed: list[BaseException] = []

    def write() -> None:
        with contextlib.suppress(OSError), os.fdopen(writing, "wb") as stream:  # Docker has stopped to read
            try:
                with tarfile.open(fileobj=stream, mode="w|") as archive:
                    text = dockerfile.encode()
                    info = tarfile.TarInfo("Dockerfile")
                    info.size = len(text)
                    archive.addfile(info, BytesIO(text))
                    archive.add(environment, "environment", filter=_readable)
            except (OSError, tarfile.TarError) as exc:
                failed.append(exc)
                stream.write(_NO_TAR)

    thread = threading.Thread(target=write, name="build context", daemon=True)
    thread.start()
    try:
        with os.fdopen(reading, "rb") as stream:
            yield stream
    except RmLaunchError as exc:
        thread.join()
        if failed and not isinstance(failed[0], BrokenPipeError):
            raise PrepareError(f"could not read {environment}: {failed[0]}") from exc
        raise
    finally:
        thread.join()
