"""Names and ports: what is taken, by whom, and what is chosen instead."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.base import ConfigError, DeploymentError, ResourceError
from launcher.atomic import open_lock
from launcher.deployments.holders import Holder, described, holders
from launcher.deployments.ledger import Claim, Ledger

LOOPBACK = "127.0.0.1"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


@contextmanager
def claimed(ledger: Ledger, name: str, *ports: int) -> Iterator[Claim]:
    with ledger.exclusive():
        claim = ledger.claim(name, ports, {"any": "plan"})
    try:
        yield claim
    finally:
        claim.release()


@contextmanager
def listening(host: str = LOOPBACK) -> Iterator[int]:
    with socket.create_server((host, 0)) as server:
        yield int(server.getsockname()[1])


# ------------------------------------------------------------------------------------------------------------- names


def test_a_name_is_free_until_it_is_claimed_and_again_when_it_is_released(ledger: Ledger) -> None:
    assert ledger.free_name(None, "a") == "a"
    with claimed(ledger, "a"):
        assert ledger.is_live("a")
        assert ledger.free_name(None, "a") == "a-2"
        with claimed(ledger, "a-2"):
            assert ledger.free_name(None, "a") == "a-3"
    assert not ledger.is_live("a")
    assert ledger.free_name(None, "a") == "a"


def test_a_name_that_was_asked_for_is_not_numbered(ledger: Ledger) -> None:
    assert ledger.free_name("mine", "derived") == "mine"
    with claimed(ledger, "mine"), pytest.raises(ResourceError) as caught:
        ledger.free_name("mine", "derived")

    assert str(caught.value) == "name='mine' is taken by a running deployment; choose another or stop it"


def test_a_derived_name_is_cut_to_what_a_sockets_path_allows(ledger: Ledger) -> None:
    assert ledger.free_name(None, "x" * 100) == "x" * 60


def test_a_name_whose_owner_was_killed_is_free(ledger: Ledger) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from launcher.deployments.ledger import Ledger\n"
        "claim = Ledger(Path(sys.argv[1])).claim('a', (8123,), {}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ledger.deployments.parent)], check=False)

    assert done.returncode == -9
    assert (ledger.deployments / "a/plan.json").exists()
    assert not ledger.is_live("a")
    assert set(ledger.held_ports()) == set()


def test_the_lock_outlives_its_owner_in_a_child_that_inherited_it(ledger: Ledger) -> None:
    with ledger.exclusive():
        claim = ledger.claim("a", (), {})
    wait_for_end = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(wait_for_end, stdin=subprocess.PIPE, pass_fds=[claim.lock.fileno()]) as child:
        claim.release()
        live_with_child = ledger.is_live("a")
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)

    assert (live_with_child, ledger.is_live("a")) == (True, False)


def test_a_claim_writes_the_plan_and_clears_the_old_run(ledger: Ledger) -> None:
    (ledger.deployments / "a/run").mkdir(parents=True)
    (ledger.deployments / "a/run/old").touch()

    with claimed(ledger, "a", 8123) as claim:
        record = json.loads((claim.folder / "plan.json").read_text())
        assert not (claim.folder / "run").exists()

    assert record == {"protocol": 1, "ports": [8123], "plan": {"any": "plan"}}


def test_a_release_removes_the_run_and_keeps_the_logs(ledger: Ledger) -> None:
    with claimed(ledger, "a") as claim:
        for folder in ("run", "logs"):
            (claim.folder / folder).mkdir()

    assert not (claim.folder / "run").exists()
    assert (claim.folder / "logs").exists()


def test_folders_are_for_the_user_alone(ledger: Ledger) -> None:
    with claimed(ledger, "a") as claim:
        modes = [folder.stat().st_mode & 0o777 for folder in (ledger.deployments.parent, claim.folder)]

    assert modes == [0o700, 0o700]


# ------------------------------------------------------------------------------------------------------------- locks

HOLDER = """\
import fcntl, os, sys
path, how = sys.argv[1:3]
os.makedirs(os.path.dirname(path), exist_ok=True)
lock = open(path, "a")
fcntl.flock(lock, getattr(fcntl, how))
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str = "LOCK_EX") -> Iterator[subprocess.Popen[bytes]]:
    """The lock of `path`, in another process, until that is killed."""
    command = [sys.executable, "-c", HOLDER, str(path), how, "api_key=hunter2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_whoever_holds_the_ledger_is_named_and_waited_for_so_long_and_no_longer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("launcher.deployments.ledger._LOCK_SILENT_S", 0.1)
    monkeypatch.setattr("launcher.deployments.ledger._LOCK_LIMIT_S", 0.3)
    path = ledger.deployments.parent / "ledger.lock"
    with held(path) as holder, pytest.raises(DeploymentError) as caught, ledger.exclusive():
        pass

    assert re.fullmatch(
        rf"{path} has been held for 0\.3 s by pid {holder.pid} \(.*\); end that, or try again later", str(caught.value)
    )
    (said,) = caplog.messages
    assert said.startswith(f"waiting for pid {holder.pid} (")
    assert "hunter2" not in said


def test_somebody_who_never_ends_asking_for_a_name_does_not_hang_a_claim(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.deployments.ledger._LOCK_LIMIT_S", 0.3)
    with (
        held(ledger.deployments / "a" / "lock", "LOCK_SH") as asker,
        pytest.raises(DeploymentError, match=rf"a/lock has been held for 0\.3 s by pid {asker.pid} "),
    ):
        ledger.claim("a", (), {})


def test_a_command_says_whom_it_waits_for_and_goes_on_when_that_ends(tmp_path: Path) -> None:
    (tmp_path / "state/deployments").mkdir(parents=True)
    with held(tmp_path / "state/ledger.lock") as holder:
        command = [sys.executable, "-m", "launcher", "ps"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline().startswith(f"waiting for pid {holder.pid} (")
            holder.kill()

            assert waiting.communicate(timeout=20)[0].startswith("NAME")
            assert waiting.returncode == 0


def test_whoever_only_asks_whether_a_lock_is_free_does_not_hold_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, "LOCK_SH") as asker:
        assert holders(lock) == []
        assert described(lock).startswith(f"pid {asker.pid} (")
    with held(lock) as owner:
        assert holders(lock) == [Holder(owner.pid, lock)]


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


IN_ITS_PLACE = [os.mkfifo, a_socket, Path.mkdir, lambda path: path.symlink_to("nowhere")]


@pytest.mark.parametrize("make", IN_ITS_PLACE)
def test_what_is_no_file_is_no_lock(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "lock")

    with pytest.raises(DeploymentError, match=r"^cannot lock .*/lock: it is not a regular file; remove it$"):
        open_lock(tmp_path / "lock")


@pytest.mark.parametrize("make", IN_ITS_PLACE)
def test_something_in_place_of_the_ledgers_lock_is_one_sentence(ledger: Ledger, make: Callable[[Path], None]) -> None:
    ledger.deployments.mkdir(parents=True)
    make(ledger.deployments.parent / "ledger.lock")

    with pytest.raises(DeploymentError, match=r"cannot lock .*ledger\.lock"), ledger.exclusive():
        pass


# ------------------------------------------------------------------------------------------------------------- ports


def test_ports_are_the_first_free_ones_in_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RMLAUNCH_FIRST_PORT")
    ports = ledger.choose_ports(LOOPBACK, {"port": None, "grpc_port": None, "metrics_port": None})

    assert len(set(ports)) == 3
    assert sorted(ports) == list(ports)
    assert ports[0] >= 8001  # 8000 is left to the gateway


def test_a_port_that_is_given_is_taken_as_it_is_and_not_chosen_again(ledger: Ledger) -> None:
    (first,) = ledger.choose_ports(LOOPBACK, {"port": None})

    ports = ledger.choose_ports(LOOPBACK, {"port": None, "grpc_port": first})

    assert ports[1] == first
    assert ports[0] > first


def test_the_ports_of_a_running_deployment_are_passed_over_though_nobody_listens_yet(ledger: Ledger) -> None:
    (first,) = ledger.choose_ports(LOOPBACK, {"port": None})
    with claimed(ledger, "a", first):
        assert set(ledger.held_ports()) == {first}
        assert ledger.choose_ports(LOOPBACK, {"port": None})[0] > first
        with pytest.raises(ResourceError, match=f"^port={first} is in use by "):
            ledger.choose_ports(LOOPBACK, {"port": first})

    assert set(ledger.held_ports()) == set()
    assert ledger.choose_ports(LOOPBACK, {"port": None}) == (first,)


def test_a_port_that_somebody_listens_on_is_passed_over(ledger: Ledger) -> None:
    (first,) = ledger.choose_ports(LOOPBACK, {"port": None})
    with socket.create_server((LOOPBACK, first)):
        assert ledger.choose_ports(LOOPBACK, {"port": None})[0] > first


@pytest.mark.parametrize("listens_on", [LOOPBACK, "0.0.0.0"])
def test_who_listens_on_a_port_that_is_asked_for_is_named(ledger: Ledger, listens_on: str) -> None:
    with listening(listens_on) as port, pytest.raises(ResourceError) as caught:
        ledger.choose_ports(LOOPBACK, {"port": None, "grpc_port": port})

    message = str(caught.value)
    assert message.startswith(f"grpc_port={port} is in use by pid {os.getpid()} (")
    assert message.endswith("); choose another or leave grpc_port out")


def test_a_port_whose_last_connections_have_just_ended_is_free(ledger: Ledger) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection((LOOPBACK, port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps the address in TIME_WAIT
        client.close()

    assert ledger.choose_ports(LOOPBACK, {"port": port}) == (port,)


def test_an_address_that_is_not_ours_is_an_error_that_names_it(ledger: Ledger) -> None:
    with pytest.raises(ResourceError, match=r"^host='192\.0\.2\.1' port="):
        ledger.choose_ports("192.0.2.1", {"port": None})


def test_a_broken_record_does_not_stop_others(ledger: Ledger) -> None:
    with claimed(ledger, "a", 8123) as claim:
        (claim.folder / "plan.json").write_text("{")

        assert set(ledger.held_ports()) == set()


def test_devices_are_held_for_as_long_as_a_deployment_runs(ledger: Ledger, tmp_path: Path) -> None:
    claims = [
        ledger.claim("a", (), {"device": {"kind": "gpu", "ids": [0, 1]}}),
        ledger.claim("b", (), {"device": {"kind": "gpu", "ids": [3]}}),
        ledger.claim("c", (), {"device": {"kind": "rbln", "ids": [0]}}),
    ]
    try:
        assert ledger.held_devices("gpu") == {0: "a", 1: "a", 3: "b"}
        assert ledger.held_devices("rbln") == {0: "c"}
        instead = Ledger(tmp_path / "state", replacing="a")
        assert instead.held_devices("gpu") == {3: "b"}
        assert (instead.kept_devices("gpu"), instead.kept_devices("rbln")) == ((0, 1), ())
        assert ledger.kept_devices("gpu") == ()
    finally:
        for claim in claims:
            claim.release()
    assert ledger.held_devices("gpu") == {}


def test_the_processes_of_what_is_replaced_are_known(ledger: Ledger, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    env = {**os.environ, "RMLAUNCH_DEPLOYMENT": str(ledger.deployments / "a/run")}
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs, and is no copy of us any more
        try:
            assert Ledger(tmp_path / "state", replacing="a").is_replaced(process.pid)
            assert not Ledger(tmp_path / "state", replacing="b").is_replaced(process.pid)
            assert not ledger.is_replaced(process.pid)
        finally:
            process.kill()
    assert not Ledger(tmp_path / "state", replacing="a").is_replaced(process.pid)


def test_the_deployment_that_holds_a_port_is_named(ledger: Ledger) -> None:
    (free,) = ledger.choose_ports(LOOPBACK, {"port": None})

    with claimed(ledger, "starting", free), pytest.raises(ResourceError, match="starting"):
        ledger.choose_ports(LOOPBACK, {"port": free})


def test_users_who_share_a_machine_may_begin_elsewhere(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_FIRST_PORT", "23456")
    with ledger.exclusive():
        assert ledger.choose_ports("127.0.0.1", {"port": None})[0] >= 23456

    monkeypatch.setenv("RMLAUNCH_FIRST_PORT", "many")
    with ledger.exclusive(), pytest.raises(ConfigError, match="RMLAUNCH_FIRST_PORT='many' is no port"):
        ledger.choose_ports("127.0.0.1", {"port": None})
