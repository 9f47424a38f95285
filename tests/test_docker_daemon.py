"""Whether a Docker daemon answers, and what it refuses, in words that say what to do."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.runtimes.docker_daemon import REFUSALS, AwayError, ping, refusal, when_back


@contextmanager
def daemon(path: Path, answer: bytes) -> Iterator[str]:
    """A made-up Docker daemon that gives one answer."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix://{path}"
        thread.join(5)


def away(host: str) -> str:
    with pytest.raises(AwayError) as caught:
        ping(host)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_daemon_that_answers_says_which_api_it_has(tmp_path: Path) -> None:
    with daemon(tmp_path / "a.sock", b"HTTP/1.0 200 OK\r\nApi-Version: 1.51\r\n\r\nOK") as host:
        assert ping(host) == f"daemon at {tmp_path}/a.sock, API 1.51"


@pytest.mark.parametrize(("answer", "shown"), [(b"HTTP/1.0 503 Busy\r\n\r\n", "HTTP/1.0 503 Busy"), (b"", "")])
def test_what_answers_otherwise_is_no_daemon(tmp_path: Path, answer: bytes, shown: str) -> None:
    with daemon(tmp_path / "a.sock", answer) as host:
        assert away(host).startswith(f"{host} answered {shown!r}, which is no Docker daemon; ")


def test_no_socket_no_listener_and_no_local_socket_are_three_sentences(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "left.sock"))
    instead = "set DOCKER_HOST to unix:///path/of/its/socket, or use runtime=process"

    none, left = f"unix://{tmp_path}/none", f"unix://{tmp_path}/left.sock"
    assert away(none) == f"no Docker daemon answers at {none}: there is no such socket; start Docker, {instead}"
    assert away(left) == f"no Docker daemon answers at {left}: Connection refused; start Docker, {instead}"
    assert away("tcp://me:secret@10.0.0.1:2375").startswith(
        "DOCKER_HOST=tcp://***@10.0.0.1:2375 is no Unix socket: a container of another machine sees neither"
    )


@pytest.mark.parametrize("host", ["unix://[", "unix://me:secret@[", "unix:///\ud800"])
def test_what_is_no_address_is_one_sentence(host: str) -> None:
    said = away(host)
    assert said.startswith("DOCKER_HOST='unix://")
    assert said.endswith("' is no address; set DOCKER_HOST to unix:///path/of/its/socket, or use runtime=process")
    assert "secret" not in said
    assert said.isascii()


def test_a_socket_that_this_user_may_not_open_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert away(f"unix://{tmp_path}/a.sock").startswith(
        f"this user may not open Docker's socket {tmp_path}/a.sock; add yourself to its group (usermod -aG docker $USER"
    )


def test_a_daemon_that_is_restarted_is_waited_for() -> None:
    tries = []

    def attempt() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise AwayError("it is gone")
        return "back"

    assert when_back(attempt) == "back"
    with pytest.raises(AwayError):
        when_back(lambda: ping("unix:///nowhere"), limit_s=0.1)


#: what daemons of 20.10 and 28 said, and the beginning of what it means
SAID = [
    (('Conflict. The container name "/rmlaunch-a" is already in use by container '
     '"0123456789abcdef0123". You have to remove (or rename) that container to be able to reuse that name.'),
     "the container name rmlaunch-a is taken by container 0123456789ab, which is none of this deployment's"),
    (("driver failed programming external connectivity on endpoint a (1f): Bind for 127.0.0.1:8000 failed: port is "
     "already allocated"), "its port is taken (127.0.0.1:8000)"),
    (("driver failed programming external connectivity on endpoint a (1f): Error starting userland proxy: listen tcp4 "
     "127.0.0.1:8000: bind: address already in use"), "its port is taken (127.0.0.1:8000)"),
    ('could not select device driver "" with capabilities: [[gpu]]', "Docker's daemon has no NVIDIA runtime"),
    ('could not select device driver "nvidia" with capabilities: [[gpu]]', "Docker's daemon has no NVIDIA runtime"),
    ('could not select device driver "cdi" with capabilities: []', "Docker's daemon cannot give devices by their CDI"),
    ("CDI device injection failed: unresolvable CDI devices rebellions.ai/npu=0",
     "Docker's daemon cannot give devices by their CDI"),
    ('error gathering device information while adding custom device "/dev/rbln0": no such file or directory',
     "the device node /dev/rbln0 is not on this machine"),
    ('invalid mount config for type "bind": bind source path does not exist: /weights',
     "/weights is to be seen in the container and is not on this machine"),
    ("network mine not found", "Docker has no network mine"),
    (('failed to create shim task: OCI runtime create failed: runc create failed: exec: "tritonserver": executable '
     "file not found in $PATH: unknown"), "the image has no program tritonserver"),
    ("No such image: rmlaunch/triton-cpu:79e37a4528a7", "the image rmlaunch/triton-cpu:79e37a4528a7 is not here"),
    ("write /var/lib/docker/tmp/x: no space left on device", "the disk of Docker's own folder is full"),
    ("Minimum memory limit allowed is 6MB", "runtime.memory is less than 6MB"),
    ("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
     "runtime.cpus is not from 0.01 to 2.00"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), SAID)
def test_a_refusal_is_one_sentence_with_dockers_own_words_after_it(said: str, meant: str) -> None:
    sentence = refusal(said)

    assert sentence.startswith(meant)
    assert sentence.endswith(f"(Docker: {' '.join(said.split())[:300]})")
    assert "\n" not in sentence


def test_every_refusal_has_its_example() -> None:
    for known in REFUSALS:
        assert any(re.search(known.pattern, said) for said, _ in SAID), known.pattern


def test_a_refusal_that_nobody_knows_is_quoted() -> None:
    assert refusal("what is\n this") == "Docker refuses: what is this"
