"""Clearing what a container's supervisor has left, whatever its record has become: one sentence, and no error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.procfs import is_alive
from launcher.runtimes import keeper
from launcher.runtimes.docker import DockerRuntime


@contextmanager
def busy_daemon(path: Path, pid: int, seen: list[bool]) -> Iterator[str]:
    """A daemon that refuses; `seen` gets whether the process `pid` was alive when it was asked."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(10)
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                seen.append(is_alive(pid))
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 503 Busy\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix://{path}"
        thread.join(10)


def test_the_container_is_removed_before_processes_are_looked_at(tmp_path: Path) -> None:
    run_dir, seen = str(tmp_path / "run"), list[bool]()
    kept = keeper.start(run_dir, b"orders")
    try:
        with busy_daemon(tmp_path / "d.sock", kept[0], seen) as host:
            (left,) = DockerRuntime().clear(run_dir, {"container": {"daemon": host}})

        assert left.startswith(f"its container, which cannot be removed: {host} answered 'HTTP/1.0 503 Busy'")
        assert seen == [True]
        assert not is_alive(kept[0])
    finally:
        keeper.end(*kept)


@pytest.mark.parametrize("container", [5, "none", [1], None, {}, {"daemon": 5}, {"daemon": None}])
def test_where_the_record_does_not_say_the_daemon_of_now_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: object
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")

    (left,) = DockerRuntime().clear(str(tmp_path / "run"), {"container": container})

    assert left.startswith(
        f"its container, which cannot be removed: no Docker daemon answers at unix://{tmp_path}/none: there is no such"
    )


@pytest.mark.parametrize("daemon", ["unix://[", "unix:///\ud800", "", "7"])
def test_a_daemon_that_is_no_address_is_told(tmp_path: Path, daemon: str) -> None:
    (left,) = DockerRuntime().clear(str(tmp_path / "run"), {"container": {"daemon": daemon}})

    assert left.startswith("its container, which cannot be removed: DOCKER_HOST=")
