"""What a plan says of its container, and the request that Docker gets for it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from engines.base import ConfigError, Container, LaunchPlan, Mount, PlanError, Port
from launcher import plan_json
from launcher.cli import plan_text
from launcher.cli.main import run
from launcher.config.compose import normalized
from launcher.deployments.ledger import Ledger
from launcher.planning import containers
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.runtimes import docker_request
from launcher.runtimes.docker import linked
from tests.supervision import free_port


def plan_of(tmp_path: Path, *overrides: str) -> LaunchPlan:
    config = settle(normalized([*overrides, "runtime=docker"]), this_machine()).config
    engine, spec = resolve(config, Machine(Ledger(tmp_path / "state")))
    return engine.plan(spec)


def container_of(tmp_path: Path, *overrides: str) -> Container:
    container = plan_of(tmp_path, *overrides).container
    assert container is not None
    return container


def words_of(tmp_path: Path, *overrides: str) -> tuple[str, ...]:
    return docker_request.docker_run(plan_of(tmp_path, *overrides))


CPU = ("engine=triton", "device=cpu", "model=smollm2", "name=mine")


def test_a_container_has_only_what_its_engine_needs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *CPU)
    container, run_dir = plan.container, str(tmp_path / "state/deployments/mine/run")

    assert container is not None
    assert re.fullmatch(r"rmlaunch-mine-[0-9a-f]{6}", container.name)
    assert container.labels == {"rmlaunch.deployment": "mine", "rmlaunch.folder": run_dir}
    assert (container.cap_drop, container.cap_add) == (("ALL",), ())
    assert container.security == ("no-new-privileges:true",)
    assert container.user == f"{os.getuid()}:{os.getgid()}"
    assert (container.nodes, container.cdi, container.gpu_ids, container.ipc) == ((), (), (), None)
    assert container.shm_size == "1g"
    assert (container.read_only, container.pids) == (True, 16384)
    assert container.mounts == (
        Mount(run_dir, run_dir),
        Mount(f"{run_dir}/models", f"{run_dir}/models"),
        Mount(plan.model.path, plan.model.path),
        Mount(container.cache, container.cache, read_only=False),
    )
    assert plan.leftovers == ()


def test_what_torchserve_writes_to_is_a_folder_of_its_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=torchserve", "device=cpu")

    assert plan.container is not None
    assert plan.key is not None
    assert plan.key.path == f"{plan.run_dir}/work/key_file.json"
    written = [mount.source for mount in plan.container.mounts if not mount.read_only]
    assert written == [f"{plan.run_dir}/work", plan.container.cache]


@pytest.mark.parametrize(
    ("overrides", "read_only"),
    [
        ((), True),
        (("runtime.read_only=false",), False),
        (("runtime.image=me/mine:1",), False),
        (("runtime.image=me/mine:1", "runtime.read_only=true"), True),
    ],
)
def test_its_files_are_read_only_where_that_is_known_to_work_or_is_asked_for(
    tmp_path: Path, overrides: tuple[str, ...], read_only: bool
) -> None:
    plan = plan_of(tmp_path, *CPU, *overrides)
    words = docker_request.docker_run(plan)

    assert plan.container is not None
    assert plan.container.read_only is read_only
    assert ("--read-only" in words) is read_only
    assert ("--tmpfs=/tmp:exec,mode=1777" in words) is read_only
    assert (f"--mount=type=bind,source={plan.run_dir},target={plan.run_dir},readonly" in words) is read_only
    assert "--pids-limit=16384" in words


def test_every_port_is_published_on_loopback_with_the_number_that_it_has_inside(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *CPU)
    http, grpc = plan.endpoints.http, plan.endpoints.grpc

    assert plan.container is not None
    assert grpc is not None
    assert [port.host for port in plan.container.ports] == ["127.0.0.1"] * 3
    assert [port.number for port in plan.container.ports][:2] == [http.port, grpc.port]
    assert (http.host, grpc.host) == ("127.0.0.1", "127.0.0.1")
    assert plan.argv.count("0.0.0.0") == 3  # its own loopback could not be reached from outside


def test_only_the_api_is_published_where_the_user_asks(tmp_path: Path) -> None:
    port = free_port()
    container = container_of(tmp_path, "engine=vllm", "device=cpu", "host=0.0.0.0", "api_key=k", f"port={port}")

    assert container.ports == (Port("0.0.0.0", port),)
    assert plan_of(tmp_path, "engine=vllm", "device=cpu", "host=localhost").endpoints.http.host == "127.0.0.1"
    with pytest.raises(PlanError, match=r"set api_key"):
        plan_of(tmp_path, "engine=vllm", "device=cpu", "host=0.0.0.0")
    with pytest.raises(PlanError, match=r"host='::1': containers' ports are published on addresses of IPv4"):
        plan_of(tmp_path, "engine=vllm", "device=cpu", "host=::1")


def test_torchserves_control_ports_are_published_on_loopback_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=torchserve", "device=cpu")

    assert plan.container is not None
    assert {port.host for port in plan.container.ports} == {"127.0.0.1"}
    assert plan.files["config.properties"].count("address=http://0.0.0.0:") == 3
    (archive,) = (step for step in plan.builds if step.name == "torch-model-archiver")
    assert archive.environment.path != plan.environment.path == containers.ENVIRONMENT  # it is made on this machine
    assert Mount(archive.output, archive.output) in plan.container.mounts


def test_a_port_that_is_not_the_api_stays_on_loopback_wherever_the_api_is(tmp_path: Path) -> None:
    config = settle(["engine=triton", "device=cpu", "runtime=docker"], this_machine()).config
    engine, spec = resolve(config, Machine(Ledger(tmp_path / "state")))

    container = engine.plan(dataclasses.replace(spec, published="10.0.0.1")).container
    assert container is not None
    assert [port.host for port in container.ports] == ["10.0.0.1", "127.0.0.1", "127.0.0.1"]


def test_an_image_is_named_in_the_config_or_built_from_the_packages_there(tmp_path: Path) -> None:
    built = container_of(tmp_path, *CPU)
    named = container_of(tmp_path, "engine=vllm", "device=gpu", "model=llama3-8b")

    assert built.build is not None
    assert re.fullmatch(r"rmlaunch/triton-cpu:[0-9a-f]{12}", built.image)
    assert built.build.base.startswith("python:3.")
    assert built.build.libraries.startswith("libpython3.")
    assert (named.image, named.build) == ("vllm/vllm-openai:v0.32.0", None)
    assert container_of(tmp_path, *CPU, "runtime.image=me/mine:1").image == "me/mine:1"
    assert container_of(tmp_path, *CPU, "engine.images.cpu=me/mine:2").image == "me/mine:2"


@pytest.mark.parametrize(
    "change",
    ["runtime.base=other:1", "engine.environments.cpu.requirements=['a==1']"],
)
def test_an_image_has_another_name_where_anything_in_it_differs(tmp_path: Path, change: str) -> None:
    assert container_of(tmp_path, *CPU).image == container_of(tmp_path, *CPU).image
    assert container_of(tmp_path, *CPU).image != container_of(tmp_path, *CPU, change).image


def test_gpus_are_requested_and_seen_under_their_new_numbers(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=triton", "device=gpu", "device.ids=[1]", "model=llama3-8b")

    assert plan.container is not None
    assert plan.container.gpu_ids == ("1",)
    assert (plan.container.nodes, plan.container.cdi) == ((), ())
    assert plan.container.ulimits == {"memlock": -1, "stack": 67108864}
    assert "CUDA_VISIBLE_DEVICES" not in plan.env
    assert plan.argv[:3] == ("/opt/tritonserver/bin/tritonserver", "--backend-directory", "/opt/tritonserver/backends")
    assert plan.links == {}  # the image has the Python backend


def test_npus_are_given_by_their_nodes_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("engine=vllm", "device=rbln", "device.assume=RBLN-CA25", "device.count=4", "model=llama3-8b",
             f"port={free_port()}")  # the free ones may be others at the next look  # fmt: skip
    nodes = container_of(tmp_path, *words)

    assert nodes.nodes == ("/dev/rbln0", "/dev/rbln1", "/dev/rbln2", "/dev/rbln3", "/dev/rsd0")
    assert nodes.cap_add == ("IPC_LOCK",)
    assert (nodes.ipc, nodes.ulimits) == ("host", {"memlock": -1})
    assert Mount("/usr/bin/rbln-smi", "/usr/bin/rbln-smi") in nodes.mounts

    monkeypatch.setattr(containers, "_CDI_FOLDERS", (str(tmp_path),))
    (tmp_path / "rbln.yaml").write_text("cdiVersion: 0.5.0\nkind: rebellions.ai/npu\ndevices: []\n")
    named = container_of(tmp_path, *words)
    assert named.cdi == tuple(f"rebellions.ai/npu={number}" for number in range(4))
    assert named.nodes == ()
    assert Mount("/usr/bin/rbln-smi", "/usr/bin/rbln-smi") not in named.mounts
    assert container_of(tmp_path, *words, "runtime.devices=nodes") == nodes


def test_furiosas_driver_gets_the_calls_that_dockers_profile_forbids(tmp_path: Path) -> None:
    container = container_of(tmp_path, "engine=furiosa", "device=furiosa", "model=llama3-8b")

    assert container.nodes == ("/dev/rngd",)
    assert container.security == ("no-new-privileges:true", "seccomp=unconfined")


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("engine.environment=/venv",), PlanError, r"engine\.environment='/venv' is on this machine"),
        (
            ("runtime.network=host",),
            PlanError,
            r"runtime\.network='host': the engine's ports are published",
        ),
        (("runtime.network=container:x",), PlanError, r"use bridge, or one that `docker network create` has made"),
        (("runtime.memory=much",), ConfigError, r"runtime\.memory='much' is not understood; write 512m or 16g"),
        (("runtime.shm_size=1t",), ConfigError, r"runtime\.shm_size='1t' is not understood"),
        (("runtime.cpus=0",), ConfigError, r"runtime\.cpus=0 must be more than 0"),
        (("runtime.pull=often",), ConfigError, r"runtime\.pull='often' is not known; use missing, always or never"),
        (("runtime.devices=all",), ConfigError, r"runtime\.devices='all' is not known; use auto, cdi or nodes"),
        (("runtime.devices=cdi",), PlanError, r"no CDI names of these devices are known"),
        (("runtime.mounts=[/here]",), ConfigError, r"runtime\.mounts: '/here' is not understood; write /here:/inside"),
        (("engine.environments.cpu.python='3.9'",), PlanError, r"runtime\.bases has no base image for Python 3\.9"),
    ],
)
def test_what_a_container_cannot_be_is_said(
    tmp_path: Path, words: tuple[str, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        plan_of(tmp_path, *CPU, *words)


def test_limits_and_mounts_of_the_users_own(tmp_path: Path) -> None:
    words = ("runtime.memory=2g", "runtime.cpus=1.5", "runtime.shm_size=3g", "runtime.network=mine", "runtime.user=5:6")
    shown = words_of(tmp_path, *CPU, *words, "runtime.mounts=[/a:/b,/c:/d:ro]")

    assert {"--memory=2g", "--memory-swap=2g", "--cpus=1.5", "--shm-size=3g", "--network=mine", "--user=5:6"} <= set(
        shown
    )
    assert "--mount=type=bind,source=/a,target=/b" in shown
    assert "--mount=type=bind,source=/c,target=/d,readonly" in shown


def test_docker_run_is_printed_as_it_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RMLAUNCH_STATE", str(tmp_path / "state"))
    words = ("engine=triton", "device=gpu", "device.ids=[0]", "model=llama3-8b", f"port={free_port()}")

    assert run(["plan", *words, "runtime=docker", "--as", "docker-run"]) == 0
    pasted = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    assert tuple(pasted) == docker_request.docker_run(plan_of(tmp_path, *words))
    assert '--gpus="device=0"' in pasted
    assert pasted[:4] == ["docker", "run", "--detach", "--init"]
    assert run(["plan", *words, "runtime=docker", "--as=docker-run"]) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--as", "compose"), "--as compose is not known; write --as docker-run"),
        (("--as",), "--as: expected one argument; see rmlaunch plan --help"),
        (("--as", "docker-run", "--json"), "--as docker-run and --json do not go together"),
        (("--as", "docker-run", "runtime=process"), "needs a container, and this launch has runtime=process"),
    ],
)
def test_other_forms_are_refused(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run(["plan", "engine=llamacpp", "device=cpu", *words])


def test_what_the_user_names_besides_the_model_can_be_read_inside(tmp_path: Path) -> None:
    words = ("engine=vllm", "device=cpu", "engine.lora.mine=/adapters/mine", "engine.chat_template=/chat.jinja")

    mounts = container_of(tmp_path, *words).mounts
    assert Mount("/adapters/mine", "/adapters/mine") in mounts
    assert Mount("/chat.jinja", "/chat.jinja") in mounts


def test_the_hubs_cache_can_be_read_inside(tmp_path: Path) -> None:
    """A link to a snapshot, which is links to blobs beside it."""
    repository = tmp_path / "hub/models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs/0123").write_text("{}")
    (repository / "snapshots/main").mkdir(parents=True)
    (repository / "snapshots/main/config.json").symlink_to("../../blobs/0123")
    (repository / "snapshots/main/gone.json").symlink_to("../../blobs/none")
    model = tmp_path / "models/org--name/main"
    model.parent.mkdir(parents=True)
    model.symlink_to(repository / "snapshots/main")

    (repository / "snapshots/main/passwd").symlink_to("/etc/passwd")
    (repository / "snapshots/main/same.json").symlink_to("config.json")

    assert linked(str(model)) == (Mount(str(repository / "blobs/0123"), str(tmp_path / "models/blobs/0123")),)


def test_secrets_are_named_and_not_shown(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=vllm", "device=cpu", "api_key=sesame")

    assert "--env=VLLM_API_KEY" in docker_request.docker_run(plan)
    words = ("engine.env.HTTPS_PROXY='http://me:sesame@proxy:1'", "engine.args.hf_token=sesame")
    other = plan_of(tmp_path, "engine=llamacpp", "device=cpu", *words)
    assert "--env=HTTPS_PROXY" in docker_request.docker_run(other)
    assert "sesame" not in docker_request.shown(other)
    assert "sesame" not in docker_request.shown(plan) + json.dumps(plan_json.public(plan)) + "\n".join(
        plan_text.lines(plan)
    )
    indexes = "engine.environments.cpu.indexes=[https://me:sesame@index/simple]"
    assert "sesame" not in json.dumps(plan_json.public(plan_of(tmp_path, *CPU, indexes)))


# ------------------------------------------------------------------------------------------------------ runtime=auto


def chosen(*overrides: str) -> tuple[str, str]:
    settled = settle(normalized(overrides), this_machine())
    return settled.config.runtime.name, settled.reasons[-1]


def test_auto_is_a_process_where_the_engine_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.runtimes.docker_daemon.ping", lambda _: "a daemon")

    assert chosen("engine=triton", "device=cpu") == ("process", "runtime=auto → process (triton can run here)")
    assert (
        settle(
            ["engine=remote", "device=remote", "engine.url=http://a/v1", "model=remote", "model.id=a"],
            this_machine(),
        ).reasons
        == ()
    )


def test_auto_is_docker_where_it_cannot_and_a_daemon_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.runtimes.docker_daemon.ping", lambda _: "a daemon")
    words = ("engine=triton", "device=gpu", "engine.backend=vllm", "model=llama3-8b")

    assert chosen(*words) == ("docker", "runtime=auto → docker (there is no program tritonserver here; a daemon)")
    monkeypatch.setattr(Machine, "has_library", lambda *_: False)
    name, why = chosen("engine=llamacpp", "device=cpu")
    assert (name, why) == ("docker", "runtime=auto → docker (llamacpp needs libgomp.so.1, which is not here; a daemon)")


def test_auto_says_why_docker_is_no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")

    name, why = chosen("engine=triton", "device=gpu", "engine.backend=vllm", "model=llama3-8b")
    assert name == "process"
    assert why == (
        "runtime=auto → process (there is no program tritonserver here, but docker cannot do it: no Docker daemon "
        "answers at unix:///nowhere.sock: there is no such socket)"
    )
