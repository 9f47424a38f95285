"""The docker runtime against a real daemon, with a small server that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.base import LaunchPlan, Mount
from launcher.deployments.connection import Connection
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.deployments.supervised import Supervised
from launcher.runtimes.docker import DockerRuntime
from launcher.supervise import logs
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import News
from tests.containers import containers, lose_supervisor, name_of, nothing_left, plan_of, status
from tests.dockerd import BASE, PYTHON, Daemon
from tests.supervision import FAKE, detached, marked_processes, supervised, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(120), pytest.mark.usefixtures("docker_host")]


def pid_of(owner: Supervised) -> int:
    assert owner.news.pid
    return owner.news.pid


def test_a_container_serves_is_stopped_and_leaves_nothing(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path, "--say", "here I am")
    with supervised(plan, tmp_path) as owner:
        news = owner.wait_ready()

        assert news.handle is not None
        (container,) = containers(docker_daemon, plan)
        assert container["Id"] == news.handle["container"]
        assert news.pid in marked_processes(plan.run_dir)
        wait_for(lambda: logs.tail(Path(owner.news.log))[:1] == ["here I am"])
        owner.stop()
        news = owner.wait_final(15)

    assert (news.phase, news.leftovers) == (Phase.STOPPED, ())
    assert nothing_left(docker_daemon, plan)


def test_what_is_in_it_has_only_what_it_needs(docker_daemon: Daemon, tmp_path: Path) -> None:
    secret = tmp_path / "weights"
    secret.write_text("x")
    limits: dict[str, Any] = {"memory": "256m", "cpus": 1.5, "shm_size": "128m", "ulimits": {"nofile": 512}, "pids": 99}
    plan = plan_of(docker_daemon, tmp_path, mounts=(
        Mount(str(tmp_path / "deployments/fake/run"), str(tmp_path / "deployments/fake/run"), read_only=False),
        Mount(str(FAKE.parent), str(FAKE.parent)), Mount(str(secret), str(secret)),
    ), **limits)  # fmt: skip
    with supervised(plan, tmp_path) as owner:
        status = Path(f"/proc/{pid_of_ready(owner)}/status").read_text()
        with contextlib.closing(docker_daemon.client()) as client:
            told = client.inspect_container(name_of(plan))

    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    host = told["HostConfig"]
    assert host["Privileged"] is False
    assert (host["Memory"], host["MemorySwap"]) == (256 << 20, 256 << 20)
    assert (host["NanoCpus"], host["ShmSize"], host["PidsLimit"]) == (1_500_000_000, 128 << 20, 99)
    assert {mount["Source"]: mount["RW"] for mount in told["Mounts"]}[str(secret)] is False
    assert told["Config"]["Healthcheck"] == {"Test": ["NONE"]}
    port = str(plan.endpoints.http.port)
    assert host["PortBindings"] == {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": port}]}


def pid_of_ready(owner: Supervised) -> int:
    owner.wait_ready()
    return pid_of(owner)


def test_a_volume_that_its_image_declares_goes_with_it(docker_daemon: Daemon, tmp_path: Path) -> None:
    with contextlib.closing(docker_daemon.client()) as client:
        made = client.create_container(BASE, command=["/bin/true"])["Id"]
        image = client.commit(made, changes=["VOLUME /data"])["Id"]
        client.remove_container(made)
        plan = plan_of(docker_daemon, tmp_path, image=image)
        try:
            with supervised(plan, tmp_path) as owner:
                owner.wait_ready()
                (mount,) = [one for one in client.inspect_container(name_of(plan))["Mounts"] if one["Type"] == "volume"]
                owner.stop()
                owner.wait_final(15)
            assert mount["Destination"] == "/data"
            assert mount["Name"] not in [volume["Name"] for volume in client.volumes()["Volumes"] or ()]
        finally:
            client.remove_image(image)


def test_a_killed_program_is_seen_and_started_again_in_a_new_container(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with supervised(plan, tmp_path) as owner:
        before = owner.wait_ready()
        (server,) = [pid for pid in marked_processes(plan.run_dir) if pid != before.pid]
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 20)

        assert before.handle is not None
        assert owner.news.handle is not None
        assert owner.news.handle["container"] != before.handle["container"]
        assert len(containers(docker_daemon, plan)) == 1


def failed(plan: LaunchPlan, state: Path) -> News:
    with supervised(plan, state, max_crashes=1) as owner:
        return owner.wait_final(40)


def test_an_exit_code_is_told(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path, "--exit-at-start", "3", "--say", "ValueError: no such thing")
    news = failed(plan, tmp_path)

    assert news.reason == "exited 3: ValueError: no such thing"
    assert nothing_left(docker_daemon, plan)


def test_a_memory_limit_that_is_hit_is_named(docker_daemon: Daemon, tmp_path: Path) -> None:
    news = failed(plan_of(docker_daemon, tmp_path, "--allocate", "300", memory="64m"), tmp_path)

    assert news.reason.startswith("the kernel killed it because memory had run out; ")


def test_a_server_that_hangs_is_found_by_liveness(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with supervised(plan, tmp_path) as owner:
        before = owner.wait_ready()
        for pid in marked_processes(plan.run_dir):
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 30)

    assert before.starts == 1


def test_one_that_ignores_term_is_killed_after_the_grace(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path, "--ignore-sigterm")
    with supervised(plan, tmp_path, stop_grace_s=1) as owner:
        owner.wait_ready()
        owner.stop()
        began = time.monotonic()
        assert owner.wait_final(15).phase is Phase.STOPPED

    assert 1 <= time.monotonic() - began < 8
    assert nothing_left(docker_daemon, plan)


def test_somebody_elses_docker_rm_is_a_crash(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        with contextlib.closing(docker_daemon.client()) as client:
            client.remove_container(name_of(plan), force=True)
        wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 20)


# ---------------------------------------------------------------------------------------- the supervisor is killed


def test_a_killed_supervisor_in_the_foreground_takes_the_container_along(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with supervised(plan, tmp_path) as owner:
        supervisor = owner.wait_ready().supervisor
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        assert owner.wait_final(10).phase is Phase.FAILED

    assert nothing_left(docker_daemon, plan)


def test_what_both_left_when_they_were_killed_is_removed_by_the_next_launch(
    docker_daemon: Daemon, tmp_path: Path
) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with orphan(plan, tmp_path):
        assert len(containers(docker_daemon, plan)) == 1
        with Ledger(tmp_path).exclusive():
            Ledger(tmp_path).claim("other", (), {}).release()

        assert nothing_left(docker_daemon, plan)


@contextlib.contextmanager
def orphan(plan: LaunchPlan, state: Path) -> Iterator[None]:
    """A container whose launcher and supervisor are gone, and that nobody wanted to outlive them."""
    from launcher import plan_json

    ledger = Ledger(state)
    with ledger.exclusive():
        claim = ledger.claim(plan.name, (), plan_json.public(plan))
    Path(plan.run_dir).mkdir()
    handle = DockerRuntime().start(plan, claim.folder / "log")
    state_json = {"state": "READY", "handle": dataclasses.asdict(handle), "reason": "", "leftovers": [], "tail": []}
    (claim.folder / "state.json").write_text(json.dumps(state_json))
    claim.lock.close()
    yield
    DockerRuntime().clear(plan.run_dir, plan_json.public(plan))


def test_a_detached_container_is_adopted_by_its_id_with_its_secrets_and_its_log(
    docker_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path))
    plan = plan_of(docker_daemon, tmp_path, "--say", "here I am")
    with detached(plan, tmp_path, api_key="sesame") as folder:
        before = lose_supervisor(folder)
        (found,) = Deployments(tmp_path).all()

        assert (found.news.phase, found.news.starts) == (Phase.READY, 1)
        assert found.news.supervisor != before["supervisor"]
        assert found.news.handle == before["handle"]
        with Connection(folder) as connection:
            assert connection.ask("target")["api_key"] == "sesame"
        assert "sesame" not in "".join(file.read_text() for file in folder.glob("*.json"))
        log = Path(found.news.log)
        assert log.read_text().count("here I am") == 1

        os.kill(found.news.pid or 0, signal.SIGKILL)
        wait_for(lambda: status(folder)["starts"] == 2 and status(folder)["state"] == "READY", 20)
    assert nothing_left(docker_daemon, plan)


def test_one_that_ended_while_nobody_looked_is_said_to_have(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with detached(plan, tmp_path) as folder:
        lose_supervisor(folder)
        with contextlib.closing(docker_daemon.client()) as client:
            client.kill(name_of(plan))
        (found,) = Deployments(tmp_path).all()

    assert (found.news.phase, found.live) == (Phase.FAILED, False)
    assert found.news.reason == "its supervisor was killed; its program has ended since, or was not to outlive it"
    assert nothing_left(docker_daemon, plan)


def test_what_links_lead_to_is_seen_inside(docker_daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "hub/blobs").mkdir(parents=True)
    (tmp_path / "hub/blobs/0123").write_text("the weights")
    snapshot = tmp_path / "hub/snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "weights").symlink_to("../../blobs/0123")
    path = tmp_path / "cache/name/main"
    path.parent.mkdir(parents=True)
    path.symlink_to(snapshot)
    plan = plan_of(docker_daemon, tmp_path)
    assert plan.container is not None
    box = dataclasses.replace(plan.container, mounts=(*plan.container.mounts, Mount(str(path), str(path))))
    script = f"import sys; print(open('{path}/weights').read()); sys.exit(3)"
    model = dataclasses.replace(plan.model, path=str(path))
    plan = dataclasses.replace(plan, container=box, argv=(PYTHON, "-c", script), model=model)

    assert failed(plan, tmp_path).tail == ("the weights",)


# ------------------------------------------------------------------------------------------ what Docker cannot do


def test_a_name_that_somebody_elses_container_has_is_named(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    assert plan.container is not None
    with contextlib.closing(docker_daemon.client()) as client:
        other = client.create_container(BASE, command=["/bin/true"], name=plan.container.name)["Id"]
        try:
            reason = failed(plan, tmp_path).reason
        finally:
            client.remove_container(other)

    assert reason.startswith(f"the container name {plan.container.name} is taken by container {other[:12]}")


def test_a_port_that_is_taken_is_named(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", plan.endpoints.http.port))
        other.listen()
        reason = failed(plan, tmp_path).reason

    assert reason.startswith(f"its port is taken (127.0.0.1:{plan.endpoints.http.port}) by another program")
    assert nothing_left(docker_daemon, plan)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu_ids": ("0",)}, "Docker's daemon has no NVIDIA runtime; install nvidia-container-toolkit"),
        ({"nodes": ("/dev/rbln0",)}, "the device node /dev/rbln0 is not on this machine"),
        ({"cdi": ("rebellions.ai/npu=0",)}, "Docker's daemon cannot give devices by their CDI names"),
        ({"mounts": (Mount("/no/weights", "/no/weights"),)}, "/no/weights is to be seen in the container"),
        ({"network": "nobodys"}, "Docker has no network nobodys"),
        ({"memory": "1m"}, "runtime.memory is less than 6MB"),
        ({"cpus": 4096.0}, "runtime.cpus is not from 0.01 to "),
        ({"image": "rmlaunch-test/none:1"}, "the image rmlaunch-test/none:1 is not here"),
    ],
)
def test_what_docker_refuses_is_one_sentence(
    docker_daemon: Daemon, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    plan = plan_of(docker_daemon, tmp_path, **changes)

    assert failed(plan, tmp_path).reason.startswith(reason)
    assert nothing_left(docker_daemon, plan)


def test_a_program_that_the_image_lacks_is_named(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = dataclasses.replace(plan_of(docker_daemon, tmp_path), argv=("/opt/none", "serve"))

    reason = failed(plan, tmp_path).reason
    assert reason.startswith("exited 127: the image has no such program (")
    assert reason.endswith("exec /opt/none failed: No such file or directory); check engine.program, engine.layouts "
                           "and the image")  # fmt: skip


# -------------------------------------------------------------------------------------------- the daemon is restarted


def test_a_daemon_that_is_restarted_is_waited_for(docker_daemon: Daemon, tmp_path: Path) -> None:
    """Without live-restore it ends its containers."""
    if not docker_daemon.own:
        pytest.skip("not run here: the daemon is not the tests' own")
    plan = plan_of(docker_daemon, tmp_path)
    with supervised(plan, tmp_path) as owner:
        owner.wait_ready()
        docker_daemon.restart()
        wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 60)
        owner.stop()
        assert owner.wait_final(20).leftovers == ()

    assert nothing_left(docker_daemon, plan)


def test_a_container_that_outlives_its_daemon_is_not_started_again_and_its_end_is_still_seen(
    docker_daemon: Daemon, tmp_path: Path
) -> None:
    if not docker_daemon.own:
        pytest.skip("not run here: the daemon is not the tests' own")
    plan = plan_of(docker_daemon, tmp_path, "--say", "here I am")
    settings = dataclasses.replace(plan.probes.settings, liveness_period_s=60)  # its port is gone meanwhile
    plan = dataclasses.replace(plan, probes=dataclasses.replace(plan.probes, settings=settings))
    docker_daemon.restart("--live-restore")
    try:
        with supervised(plan, tmp_path) as owner:
            before = owner.wait_ready()
            docker_daemon.restart("--live-restore")
            os.kill(before.pid or 0, 0)  # it is there
            assert (owner.news.starts, owner.news.phase) == (1, Phase.READY)
            Path(f"/proc/{before.pid}/fd/1").write_text("still here\n")
            wait_for(lambda: Path(before.log).read_text() == "here I am\nstill here\n")

            os.kill(before.pid or 0, signal.SIGKILL)
            wait_for(lambda: owner.news.starts == 2 and owner.news.phase is Phase.READY, 30)
        assert nothing_left(docker_daemon, plan)
    finally:
        docker_daemon.restart()


def test_what_could_not_be_removed_is_found_by_the_next_launch(docker_daemon: Daemon, tmp_path: Path) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with orphan(plan, tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("launcher.runtimes.docker_daemon.ping", _away)
            with Ledger(tmp_path).exclusive():
                (left,) = Ledger(tmp_path).sweep(plan.name)
        assert left == "its container, which cannot be removed: no Docker daemon answers"
        assert Path(plan.run_dir).exists()
        with Ledger(tmp_path).exclusive():
            Ledger(tmp_path).claim("other", (), {}).release()

        assert nothing_left(docker_daemon, plan)
        assert not Path(plan.run_dir).exists()


def test_a_log_that_was_lost_is_written_anew_by_the_adopter(
    docker_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path))
    plan = plan_of(docker_daemon, tmp_path, "--say", "here I am")
    with detached(plan, tmp_path) as folder:
        Path(lose_supervisor(folder)["log"]).unlink()
        (found,) = Deployments(tmp_path).all()
        wait_for(lambda: Path(found.news.log).exists() and Path(found.news.log).read_text() == "here I am\n")


def test_an_adopter_that_finds_no_daemon_leaves_everything_as_it_is(
    docker_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(docker_daemon, tmp_path)
    with detached(plan, tmp_path) as folder:
        lose_supervisor(folder)
        with monkeypatch.context() as patch:
            patch.setattr("launcher.runtimes.docker_daemon.ping", _away)
            (found,) = Deployments(tmp_path).all()
            assert (found.live, found.news.phase) == (False, Phase.UNKNOWN)
            assert "no Docker daemon answers" in found.news.reason
            assert json.loads((folder / "state.json").read_text())["state"] == "READY"
        assert len(containers(docker_daemon, plan)) == 1
        (found,) = Deployments(tmp_path).all()
        assert (found.live, found.news.phase) == (True, Phase.READY)


def _away(_: str) -> str:
    from launcher.runtimes.docker_daemon import AwayError

    raise AwayError("no Docker daemon answers")
