"""Deployments that outlive whoever asked for them: found by name, asked over their socket, adopted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from engines.base import DeploymentError, LaunchPlan, RequestError
from launcher import plan_json
from launcher.cli import main
from launcher.deployments.connection import Connection, NoAnswerError
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments, _own
from launcher.runtimes.base import NotAdoptableError
from launcher.serving.hand_over import orders_for
from launcher.supervise.control_socket import SOCKET, connect
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News, Record
from tests.supervision import (
    claimed,
    detached,
    fake_plan,
    free_port,
    is_alive,
    marked_processes,
    settings,
    supervised,
    wait_for,
)


def pids(state: Path, name: str = "fake") -> tuple[int, int]:
    """Of the supervisor and of the program."""
    news = Deployments(state).find(name).news
    assert news.supervisor is not None
    assert news.pid is not None
    return news.supervisor, news.pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))


def stop(folder: Path) -> News:
    with Connection(folder) as connection:
        return list(connection.follow(time.monotonic() + 10, "stop"))[-1]


def said(folder: Path) -> dict[str, Any]:
    """By its supervisor, whoever that is by now; nothing where there is none."""
    try:
        with Connection(folder) as connection:
            return connection.ask("status")
    except (OSError, DeploymentError):  # nobody listens, or it ended while it was asked
        return {}


def forget(state: Path) -> None:
    (state / "deployments/fake/state.json").unlink()


def garble(state: Path) -> None:
    (state / "deployments/fake/state.json").write_text('{"state": "REA')


def serves(plan: LaunchPlan) -> bool:
    try:
        socket.create_connection((plan.endpoints.http.host, plan.endpoints.http.port), 1).close()
    except OSError:
        return False
    return True


def test_it_goes_on_without_its_owner_and_stops_without_a_trace(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    with detached(plan, tmp_path) as folder:
        found = Deployments(tmp_path).find("fake")
        assert (found.live, found.news.phase, found.news.detached, found.plan["name"]) == (
            True, Phase.READY, True, "fake",
        )  # fmt: skip

        last = stop(folder)

    assert (last.phase, last.leftovers) == (Phase.STOPPED, ())
    assert not Path(plan.run_dir).exists()
    assert marked_processes(plan.run_dir) == []
    wait_for(lambda: not Deployments(tmp_path).find("fake").live)


@pytest.mark.parametrize("harm", [forget, garble])
def test_what_nobody_can_find_again_is_ended(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    plan = fake_plan(tmp_path)
    with detached(plan, tmp_path):
        supervisor, program = pids(tmp_path)
        harm(tmp_path)
        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY  # its supervisor knows
        kill(supervisor)

        found = Deployments(tmp_path).find("fake")

        assert (found.news.phase, found.live, is_alive(program)) == (Phase.FAILED, False, False)
        assert "its state.json cannot be read" in found.news.reason
        assert marked_processes(plan.run_dir) == []


def test_a_killed_supervisor_leaves_it_serving_and_the_next_command_adopts_it(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "--starts-file", str(tmp_path / "starts"))
    with detached(plan, tmp_path) as folder:
        supervisor, program = pids(tmp_path)
        kill(supervisor)
        assert serves(plan)

        adopter, same = pids(tmp_path)

        assert (same, is_alive(program), adopter != supervisor) == (program, True, True)
        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY
        assert len((tmp_path / "starts").read_text().splitlines()) == 1
        assert stop(folder).phase is Phase.STOPPED
        assert not serves(plan)
        assert marked_processes(plan.run_dir) == []


def test_a_number_that_another_process_has_by_now_is_no_supervisor(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        supervisor, program = pids(tmp_path)
        kill(supervisor)
        wait_for(lambda: not Ledger(tmp_path).is_live("fake"))
        said = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(said | {"supervisor": os.getpid()}))

        found = Deployments(tmp_path).find("fake")

        assert (found.live, found.news.phase, found.news.pid) == (True, Phase.READY, program)
        assert stop(folder).phase is Phase.STOPPED
        assert not is_alive(program)


def test_device_memory_that_is_not_given_back_is_told_by_an_adopter_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used"
    used.write_text("0")
    monkeypatch.setenv("LEAKY_DEVICE", str(used))
    with detached(fake_plan(tmp_path), tmp_path, device="tests.fakes.leaky_device:LeakyDevice") as folder:
        used.write_text(str(1 << 30))
        kill(pids(tmp_path)[0])
        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY

        last = stop(folder)

    assert (last.phase, last.leftovers) == (
        Phase.STOPPED, ("1024 MiB more of the memory of npu 0 than before the start",),
    )  # fmt: skip


def test_an_adopted_program_that_ends_is_started_again(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path):
        supervisor, program = pids(tmp_path)
        kill(supervisor)
        assert pids(tmp_path)[1] == program

        kill(program)

        wait_for(lambda: Deployments(tmp_path).find("fake").news.starts == 2)
        wait_for(lambda: Deployments(tmp_path).find("fake").news.phase is Phase.READY)
        news = Deployments(tmp_path).find("fake").news
        assert (news.pid != program, news.crashes) == (True, 1)
        assert news.reason == "it ended, and nobody saw its exit code"


def test_an_adopter_knows_that_it_has_served(tmp_path: Path) -> None:
    """Its program may be in the middle of a restart when its supervisor is killed."""
    plan = fake_plan(tmp_path, "--ready-after", "2")
    with detached(plan, tmp_path) as folder:
        supervisor, program = pids(tmp_path)
        kill(program)
        wait_for(lambda: Deployments(tmp_path).find("fake").news.starts == 2)
        kill(supervisor)

        with ThreadPoolExecutor() as pool:
            adopted = pool.submit(Deployments(tmp_path).find, "fake")  # it waits until it serves
            wait_for(lambda: said(folder) != {})
            assert (said(folder)["state"], said(folder)["served"]) == ("STARTING", True)
            assert adopted.result().news.phase is Phase.READY


def test_what_nobody_can_adopt_is_ended_and_said(tmp_path: Path) -> None:
    child = tmp_path / "child"
    plan = fake_plan(tmp_path, "--setsid-child", str(child))
    with detached(plan, tmp_path):
        supervisor, program = pids(tmp_path)
        kill(supervisor)
        kill(program)
        assert is_alive(int(child.read_text()))

        found = Deployments(tmp_path).find("fake")

        assert (found.live, found.news.phase) == (False, Phase.FAILED)
        assert found.news.reason == "its supervisor was killed; its program has ended since, or was not to outlive it"
        assert not is_alive(int(child.read_text()))
        assert not Path(plan.run_dir).exists()
        with pytest.raises(RequestError, match="fake is FAILED, not running"):
            found.connect()


def test_its_key_is_on_no_disk_and_is_there_after_an_adoption(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path, api_key="sesame-open") as folder:
        kill(pids(tmp_path)[0])
        with Deployments(tmp_path).find("fake").connect() as connection:
            given = connection.ask("target")

        assert (given["api_key"], given["options"]) == ("sesame-open", {"protocol": "x"})
        assert [file for file in folder.rglob("*") if file.is_file() and b"sesame" in file.read_bytes()] == []


def test_a_launch_of_another_name_leaves_an_orphan_alone(tmp_path: Path) -> None:
    """It is swept where it cannot serve, and only there."""
    plan = fake_plan(tmp_path)
    with detached(plan, tmp_path):
        kill(pids(tmp_path)[0])

        claimed(fake_plan(tmp_path, name="other"), tmp_path).release()

        assert serves(plan)
        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY


def test_the_program_of_a_foreground_launch_is_adopted_by_nobody(tmp_path: Path) -> None:
    with supervised(fake_plan(tmp_path), tmp_path) as owner:
        owner.wait_ready()
        found = Deployments(tmp_path).find("fake")
        assert (found.live, found.news.detached) == (True, False)
        supervisor, program = pids(tmp_path)

        kill(supervisor)

        wait_for(lambda: not is_alive(program))
        assert Ledger(tmp_path).saved_orders("fake") is None


@pytest.mark.parametrize("file", ["state.json", "plan.json"])
@pytest.mark.parametrize("content", [b"", b'{"state": "REA', b"[]", b"\xff\xfe"], ids=["empty", "cut", "list", "bytes"])
def test_a_damaged_file_is_no_harm_to_others(tmp_path: Path, file: str, content: bytes) -> None:
    with detached(fake_plan(tmp_path), tmp_path):
        broken = claimed(fake_plan(tmp_path, name="broken"), tmp_path)
        broken.release()
        (broken.folder / "state.json").write_text('{"state": "STOPPED", "leftovers": [], "tail": []}')
        (broken.folder / file).write_bytes(content)

        found = {item.name: item for item in Deployments(tmp_path).all()}

        assert found["fake"].news.phase is Phase.READY
        if file == "state.json":
            assert found["broken"].news.reason.startswith("its state.json cannot be read")
        else:
            assert found["broken"].plan == {}


def test_what_a_killed_launch_or_supervisor_was_writing_is_swept(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        half = [folder / ".state.json.4194305", folder / ".plan.json.4194305-7"]  # beyond the largest number there is
        begun = tmp_path / "deployments/begun"
        begun.mkdir()
        half.append(begun / ".plan.json.4194305-7")
        for file in half:
            file.touch()

        Deployments(tmp_path).all()

        assert [file for file in half if file.exists()] == []


def test_a_name_that_does_not_come_free_is_told(tmp_path: Path) -> None:
    with (
        detached(fake_plan(tmp_path), tmp_path),
        pytest.raises(
            DeploymentError, match=r"fake has stopped, but its name is still held after 0\.1 s by pid \d+ \("
        ),
    ):
        Deployments(tmp_path).wait_ended("fake", timeout_s=0.1)


def test_its_numbers_can_be_scraped_on_loopback(tmp_path: Path) -> None:
    port = free_port()
    with detached(fake_plan(tmp_path), tmp_path, metrics_port=port) as folder:
        with Connection(folder) as connection:
            told = connection.ask("metrics")["text"]
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5)

        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'rmlaunch_state{deployment="fake",state="READY"} 1' in answer.text.splitlines()
        assert [line.split()[0] for line in answer.text.splitlines()] == [line.split()[0] for line in told.splitlines()]
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 404
        kill(pids(tmp_path)[0])
        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY
        assert requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).status_code == 200


def test_a_port_for_its_numbers_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(DeploymentError, match=f"supervise.metrics_port={port} cannot be used: Address already"),
            detached(fake_plan(tmp_path), tmp_path, metrics_port=port),
        ):
            pass
    assert marked_processes(str(tmp_path / "deployments/fake/run")) == []


def test_a_restart_is_no_crash_and_another_program(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        _, program = pids(tmp_path)
        seen = []
        with Connection(folder) as connection:
            for news in connection.follow(time.monotonic() + 10, "restart"):
                seen.append(news.phase)
                if news.phase is Phase.READY and news.starts == 2:
                    break

        assert Phase.STARTING in seen
        assert (news.crashes, news.pid != program, is_alive(program)) == (0, True, False)


def test_a_stop_during_a_restart_is_a_stop(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path, "--ignore-sigterm"), tmp_path) as folder, Connection(folder) as connection:
        assert list(connection.follow(time.monotonic() + 10, "restart", "stop", "kill"))[-1].phase is Phase.STOPPED


def test_what_it_does_not_understand_is_said_or_hung_up_on(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        with (
            Connection(folder) as connection,
            pytest.raises(NoAnswerError, match="use follow, status, target, metrics, stop, kill or restart"),
        ):
            connection.ask("dance")
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"x" * 100_000, b"[" * 50_000 + b"\n"):
            with connect(folder, 5) as raw:
                raw.sendall(nonsense)
                assert raw.recv(10) == b""

        assert Deployments(tmp_path).find("fake").news.phase is Phase.READY


def test_somebody_who_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder, connect(folder, 5) as deaf:
        deaf.sendall(b'{"op": "follow"}\n' + b'{"op": "target"}\n' * 500)

        for _ in range(3):
            assert Deployments(tmp_path).find("fake").news.phase is Phase.READY
        assert stop(folder).phase is Phase.STOPPED


def test_its_folder_is_its_users_alone(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        assert (folder / SOCKET).is_socket()
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_name_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    claimed(fake_plan(tmp_path), tmp_path).release()

    with pytest.raises(RequestError, match=r"did you mean 'fake'\? available: fake"):
        Deployments(tmp_path).find("fak")


def test_the_state_on_disk_names_the_program_beyond_its_pid(tmp_path: Path) -> None:
    with detached(fake_plan(tmp_path), tmp_path) as folder:
        handle = json.loads((folder / "state.json").read_text())["handle"]

    assert handle.keys() == {"pid", "started", "boot_id", "container", "daemon", "keeper", "keeper_started", "version",
                             "protocol"}  # fmt: skip


def test_what_an_adopted_program_leaves_is_ended_before_it_is_started_again(tmp_path: Path) -> None:
    """Its grandchild went to init when the first supervisor was killed: nobody's descendant by now."""
    child = tmp_path / "child"
    with detached(fake_plan(tmp_path, "--setsid-child", str(child)), tmp_path):
        wait_for(lambda: child.exists() and bool(child.read_text()))
        grandchild = int(child.read_text())
        supervisor, _ = pids(tmp_path)
        kill(supervisor)
        _, program = pids(tmp_path)

        kill(program)

        wait_for(lambda: Deployments(tmp_path).find("fake").news.starts == 2)
        assert not is_alive(grandchild)


def test_restart_does_not_wait_for_what_keeps_crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path))
    program = tmp_path / "python"
    program.symlink_to(sys.executable)
    plan = fake_plan(tmp_path)
    with detached(dataclasses.replace(plan, argv=(str(program), *plan.argv[1:])), tmp_path) as folder:
        program.unlink()

        with pytest.raises(DeploymentError, match="fake is BACKOFF after the restart: fake: could not start"):
            main.run(["restart", "fake"])

        program.symlink_to(sys.executable)
        wait_for(lambda: said(folder)["state"] == "READY")


@pytest.mark.parametrize("key", ["folder", "run_dir", "name", "runtime"])
def test_orders_that_are_not_its_own_are_refused(tmp_path: Path, key: str) -> None:
    plan = fake_plan(tmp_path)
    claim = claimed(plan, tmp_path)
    claim.lock.close()
    orders = orders_for(plan, claim.folder, settings(3, 5.0))
    record = Record(plan=plan_json.public(plan))
    assert _own(orders.home, orders.dumps(), record) == orders
    forged = {
        "folder": dataclasses.replace(orders, folder="/"),
        "run_dir": dataclasses.replace(orders, plan=dataclasses.replace(plan, run_dir="/")),
        "name": dataclasses.replace(orders, plan=dataclasses.replace(plan, name="other")),
        "runtime": dataclasses.replace(orders, plan=dataclasses.replace(plan, runtime="docker")),
    }
    with pytest.raises(NotAdoptableError, match=rf"kept for the next one are not its own \({key}="):
        _own(orders.home, forged[key].dumps(), record)


def test_no_path_of_a_plugin_is_imported_because_it_was_kept(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    claim = claimed(plan, tmp_path)
    claim.lock.close()
    orders = orders_for(plan, claim.folder, settings(3, 5.0))
    moved = dataclasses.replace(orders, runtime="elsewhere:ProcessRuntime", device="elsewhere:Gpu")

    assert _own(orders.home, moved.dumps(), Record(plan=plan_json.public(plan))) == orders
