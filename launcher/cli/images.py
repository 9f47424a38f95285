"""The verbs `image build`, `list` and `prune`: the images that runtime=docker runs and that are built here."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from engines.base import ConfigError
from launcher.output import duration, gib, print_json, print_table
from launcher.prepare import images
from launcher.progress import Progress
from launcher.runtimes import docker_daemon
from launcher.runtimes.docker_daemon import explained


def build(args: argparse.Namespace) -> int:
    """Make the image of a launch, or fetch it, ahead of the launch. Raises `RequestError` where it cannot be done."""
    from launcher.cli.plan import planned

    said = any(word.startswith("runtime=") for word in args.overrides)
    _, plan = planned([*args.overrides, *([] if said else ["runtime=docker"])], args.config_dir)
    if plan.container is None:
        raise ConfigError(f"runtime={plan.runtime} has no image; leave it out, or use runtime=docker")
    images.ensure(plan.container, Progress())
    print_table([(plan.container.image,)])
    return 0


def list_(args: argparse.Namespace) -> int:
    """Print the images that were built here."""
    found = _ours()
    if args.json:
        print_json(found)
        return 0
    rows = [(one["image"], gib(one["size_bytes"]), duration(time.time() - one["created"])) for one in found]
    print_table([("IMAGE", "SIZE", "AGE"), *rows])
    return 0


def prune(args: argparse.Namespace) -> int:
    """Remove the images that no container is made from, or of them those that are named."""
    import docker.errors

    with contextlib.closing(docker_daemon.client(docker_daemon.address())) as client:
        found = _ours()
        if unknown := set(args.images) - {one["image"] for one in found}:
            raise ConfigError(f"{min(unknown)} is no image that was built here; rmlaunch image list has them")
        for one in (one for one in found if not args.images or one["image"] in args.images):
            with explained():
                try:
                    client.remove_image(one["image"])
                    said = "removed"
                except docker.errors.ImageNotFound:
                    said = "gone already"
                except docker.errors.APIError as exc:
                    if exc.status_code != 409:
                        raise
                    said = "kept: a container is made from it"
            print_table([(one["image"], said)])
    return 0


def _ours() -> list[Mapping[str, Any]]:
    """List the images with our label. An image built from one of them has its label too, and a name of its own."""
    with contextlib.closing(docker_daemon.client(docker_daemon.address())) as client, explained():
        found = client.images(filters={"label": images.LABEL})
    named = ((one["Labels"][images.LABEL], one) for one in found)
    return [
        {"image": name, "size_bytes": one["Size"], "created": one["Created"]}
        for name, one in named
        if name in (one["RepoTags"] or ())
    ]
