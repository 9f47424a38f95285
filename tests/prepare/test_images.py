"""Images: pulled with progress from a real registry, and built from pinned packages by a real daemon."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from engines.base import ConfigError, Container, Environment, ImageBuild, PrepareError
from launcher.cli.main import run
from launcher.paths import shipped
from launcher.prepare import images
from launcher.progress import Progress
from tests.dockerd import BASE, Daemon
from tests.supervision import free_port, wait_for


def test_a_pull_is_told_in_layers_and_bytes() -> None:
    layers = images.Layers()
    events: list[dict[str, object]] = [
        {"status": "Pulling from mine", "id": "1"},
        {"status": "Pulling fs layer", "id": "a", "progressDetail": {}},
        {"status": "Already exists", "id": "b", "progressDetail": {}},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 5 << 20, "total": 20 << 20}},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 5 << 20, "total": 20 << 20}},
        {"status": "Download complete", "id": "a", "progressDetail": {}},
        {"status": "Extracting", "id": "a", "progressDetail": {"current": 1, "total": 20 << 20}},
        {"status": "Pull complete", "id": "a", "progressDetail": {}},
        {"status": "Digest: sha256:0"},
    ]

    assert [str(layers) for event in events if layers.heard(event)] == [
        "0 of 1 layers, 0 MiB of 0 MiB",
        "1 of 2 layers, 0 MiB of 0 MiB",
        "1 of 2 layers, 5 MiB of 20 MiB",
        "1 of 2 layers, 20 MiB of 20 MiB",
        "2 of 2 layers, 20 MiB of 20 MiB",
    ]


# ---------------------------------------------------------------------------------------------- with a real daemon


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry on loopback; its address."""
    port = free_port()
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    command = ["docker-registry", "serve", str(tmp_path / "registry.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: _is_up(port))
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _is_up(port: int) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/v2/", timeout=1).ok
    return False


def container(daemon: Daemon, image: str, **more: object) -> Container:
    return Container(name="none", image=image, daemon=daemon.host, **more)  # type: ignore[arg-type]


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.mark.real
@pytest.mark.timeout(300)
def test_an_image_that_is_missing_is_pulled_with_progress(
    docker_daemon: Daemon, registry: str, said: io.StringIO
) -> None:
    image = f"{registry}/team/mine:1"
    with contextlib.closing(docker_daemon.client()) as client:
        client.tag(_two_layers(docker_daemon), f"{registry}/team/mine", "1")
        assert "error" not in client.push(f"{registry}/team/mine", "1")
        client.remove_image(image)
        client.remove_image("rmlaunch-test/layer:1")

    try:
        images.ensure(container(docker_daemon, image), Progress(said))
        images.ensure(container(docker_daemon, image), Progress(again := io.StringIO()))
        assert docker_daemon.has(image)
    finally:
        with contextlib.closing(docker_daemon.client()) as client:
            client.remove_image(image, force=True)

    lines = said.getvalue().splitlines()
    assert lines[0] == f"image        pulling {image}"
    assert re.search(r"2 of 2 layers, \d+ MiB of \d+ MiB", lines[-1]), lines
    assert again.getvalue() == ""


def _two_layers(daemon: Daemon) -> str:
    """An image of two layers, of which the second is a few MiB that do not shrink."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in (
            ("Dockerfile", f"FROM {BASE}\nCOPY noise /noise\n".encode()),
            ("noise", os.urandom(8 << 20)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    context.seek(0)
    with contextlib.closing(daemon.client()) as client:
        for _ in client.build(fileobj=context, custom_context=True, tag="rmlaunch-test/layer:1", rm=True, decode=True):
            pass
    return "rmlaunch-test/layer:1"


@pytest.mark.real
@pytest.mark.timeout(300)
def test_what_cannot_be_pulled_says_what_the_registry_said(docker_daemon: Daemon, registry: str) -> None:
    nobody = f"127.0.0.1:{free_port()}/x/y:1"
    with pytest.raises(
        PrepareError, match=rf"the image {nobody} is not here and cannot be pulled: .*refused.*; connect"
    ):
        images.ensure(container(docker_daemon, nobody), Progress(quiet=True))
    with pytest.raises(PrepareError, match=r"cannot be pulled: .*(not found|manifest unknown|does not exist)"):
        images.ensure(container(docker_daemon, f"{registry}/x/y:1"), Progress(quiet=True))
    with pytest.raises(PrepareError, match=rf"the image {nobody} is not here, and runtime\.pull=never"):
        images.ensure(container(docker_daemon, nobody, pull="never"), Progress(quiet=True))


def build_of(folder: Path, base: str, dockerfile: str | None = None) -> ImageBuild:
    """Of a small environment that is made already."""
    path = folder / "environment"
    if not path.exists():
        (path / "bin").mkdir(parents=True)
        (path / "bin/python").symlink_to("/of/another/machine/python3.11")
        (path / "pyvenv.cfg").write_text("home = /of/another/machine\nversion_info = 3.11.7\n")
        (path / "lib/python3.11/site-packages").mkdir(parents=True)
        (path / "lib/python3.11/site-packages/mine.py").write_text("ANSWER = 42\n")
    text = dockerfile or (shipped("templates") / "docker/Dockerfile").read_text()
    return ImageBuild(base, Environment("mine-cpu", str(path), "3.11"), "libgomp.so.1:libgomp1", text)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_built_image_has_the_environment_on_its_own_python(
    docker_daemon: Daemon, docker_host: str, tmp_path: Path, said: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    assert docker_host == docker_daemon.host
    image = "rmlaunch/mine-cpu:test"
    box = container(docker_daemon, image, build=build_of(tmp_path, BASE))
    images.ensure(box, Progress(said))
    images.ensure(box, Progress(again := io.StringIO()))

    assert f"image        building {image} on {BASE}\n" in said.getvalue()
    assert again.getvalue() == ""
    code = "import mine, sys; print(mine.ANSWER, sys.prefix, mine.__cached__)"
    with contextlib.closing(docker_daemon.client()) as client:
        made = client.create_container(image, command=["/opt/rmlaunch/environment/bin/python", "-c", code])["Id"]
        try:
            client.start(made)
            client.wait(made)
            answer = client.logs(made).decode()
            assert run(["image", "list", "--json"]) == 0
            listed = json.loads(capsys.readouterr().out)
            assert image in [one["image"] for one in listed]
            assert run(["image", "prune", image]) == 0
            assert re.search(rf"{image} +kept: a container is made from it", capsys.readouterr().out)
        finally:
            client.remove_container(made, force=True)
        assert run(["image", "prune", image]) == 0
        assert re.search(rf"{image} +removed", capsys.readouterr().out)
        assert not docker_daemon.has(image)
        with pytest.raises(ConfigError, match=rf"{image} is no image that was built here"):
            run(["image", "prune", image])
    cached = "/opt/rmlaunch/environment/lib/python3.11/site-packages/__pycache__/mine.cpython-311.pyc"
    assert answer.split() == ["42", "/opt/rmlaunch/environment", cached]


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_build_that_fails_ends_with_the_builders_last_words(docker_daemon: Daemon, tmp_path: Path) -> None:
    dockerfile = "ARG BASE\nFROM ${BASE}\nRUN echo so far && exit 7\n"
    how = build_of(tmp_path, BASE, dockerfile)

    with pytest.raises(PrepareError, match=r"(?s)could not build rmlaunch/bad:1 on .*so far.*non-zero code: 7"):
        images.ensure(container(docker_daemon, "rmlaunch/bad:1", build=how), Progress(quiet=True))
    nobody = f"127.0.0.1:{free_port()}/no/base:1"
    with pytest.raises(
        PrepareError,
        match=rf"(?s)could not build rmlaunch/bad:1 on {nobody}:.*refused.*; runtime\.base names another base",
    ):
        images.ensure(
            container(docker_daemon, "rmlaunch/bad:1", build=build_of(tmp_path, nobody)), Progress(quiet=True)
        )


@pytest.mark.real
@pytest.mark.timeout(300)
def test_an_environment_that_cannot_be_read_makes_no_image(docker_daemon: Daemon, tmp_path: Path) -> None:
    how = build_of(tmp_path, BASE, "ARG BASE\nFROM ${BASE}\n")
    gone = tmp_path / "environment/lib/gone"
    gone.write_text("x" * 100)

    def vanish(info: tarfile.TarInfo) -> tarfile.TarInfo:
        if info.name.endswith("/gone"):  # listed, and not there any more when it is read
            gone.unlink()
        return info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_readable", vanish)
        with pytest.raises(PrepareError, match=r"could not read .*/environment: .*No such file"):
            images.ensure(container(docker_daemon, "rmlaunch/torn:1", build=how), Progress(quiet=True))
    assert not docker_daemon.has("rmlaunch/torn:1")


@pytest.mark.real
@pytest.mark.timeout(900)
def test_image_build_makes_what_a_launch_then_finds(
    docker_daemon: Daemon, docker_host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert docker_host == docker_daemon.host
    words = ("engine=llamacpp", "device=cpu", f"runtime.base={BASE}")
    assert run(["image", "build", *words]) == 0

    image = capsys.readouterr().out.strip()
    assert re.fullmatch(r"rmlaunch/llamacpp-cpu:[0-9a-f]{12}", image)
    assert docker_daemon.has(image)
    assert run(["plan", *words, "runtime=docker", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"]["image"] == image


def test_image_takes_only_its_own_words() -> None:
    for words in ([], ["make"], ["list", "--all"], ["prune", "--now"]):
        with pytest.raises(Exception, match="image"):
            run(["image", *words])
