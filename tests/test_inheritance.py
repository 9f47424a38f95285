"""What of a user's shell reaches the programs that rmlaunch starts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from engines.base import OUTPUT, BuildStep, ConfigError, PlanError
from launcher.config.compose import normalized
from launcher.deployments.ledger import Ledger
from launcher.devices.host import ask
from launcher.gateway import plan as gateway
from launcher.gateway.compose_process import composed
from launcher.gateway.reload import ComposedRequest
from launcher.inheritance import ALL, ENGINE, OWN, PACKAGES, inherited, of_engine
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.prepare import builds, environments
from launcher.progress import Progress
from tests.supervision import fake_plan

NEEDED = {
    "PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "http_proxy": "http://p", "NO_PROXY": "x", "SSL_CERT_FILE": "/c",
    "LD_LIBRARY_PATH": "/l", "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "HF_HOME": "/h", "OMP_NUM_THREADS": "2",
    "OPENBLAS_CORETYPE": "Haswell", "RBLN_LOG": "1", "VLLM_LOGGING_LEVEL": "INFO", "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": "/x",
}  # fmt: skip
NOBODYS = {
    "AWS_SECRET_ACCESS_KEY": "k", "AWS_PROFILE": "me", "GOOGLE_APPLICATION_CREDENTIALS": "/k", "AZURE_CLIENT_ID": "k",
    "GITHUB_TOKEN": "k", "OPENAI_API_KEY": "k", "RMLAUNCH_ADMIN_KEY": "k", "GATEWAY_ADMIN": "k", "KUBECONFIG": "/k",
    "DATABASE_URL": "k", "DOCKER_HOST": "x", "NOTIFY_SOCKET": "x", "RMLAUNCH_STATE": "/s",
    # named as what an engine needs, and secrets, or what rmlaunch decides
    "HF_TOKEN": "k", "HUGGING_FACE_HUB_TOKEN": "k", "NVIDIA_API_KEY": "k", "VLLM_API_KEY": "k", "LLAMA_API_KEY": "k",
    "HF_PWD": "k", "TRITON_PW": "k", "GPU_CREDS": "k", "RBLN_AK": "k", "ORT_DSN": "k",
    "VLLM_PORT": "1", "VLLM_HOST_IP": "x", "LLAMA_ARG_HOST": "0.0.0.0", "TRANSFORMERS_SERVE_API_KEY": "k",
    "PYTHONPATH": "/p", "VIRTUAL_ENV": "/v", "RBLN_DEVICES": "0",
}  # fmt: skip
PACKAGE_ONLY = {"PIP_INDEX_URL": "https://i", "UV_INDEX_MINE_PASSWORD": "k", "SSH_AUTH_SOCK": "/s", "NETRC": "/n"}
OURS = {**NEEDED, **NOBODYS, **PACKAGE_ONLY, **dict.fromkeys(OWN, "x")}


def test_an_engine_gets_what_engines_need() -> None:
    assert inherited(OURS) == NEEDED


def test_packages_are_found_with_the_settings_and_passwords_of_their_indexes() -> None:
    assert inherited(OURS, PACKAGES) == {**NEEDED, **PACKAGE_ONLY}


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (("HF_TOKEN",), {"HF_TOKEN"}),
        (("AWS_*",), {"AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"}),
        (("PYTHONPATH",), {"PYTHONPATH"}),
        (("PYTHON*", "VLLM_*"), {"VLLM_API_KEY"}),  # asked for by a beginning: keys are, another program's places not
        (tuple(OWN), set()),
        (("NOT_SET",), set()),
    ],
)
def test_what_is_named_comes_too(more: tuple[str, ...], names: set[str]) -> None:
    assert inherited(OURS, more).keys() - NEEDED.keys() == names


def test_what_is_rmlaunch_itself_gets_all_but_what_is_anothers() -> None:
    left = OURS.keys() - inherited(OURS, ALL).keys()

    assert left == {"PYTHONPATH", "VIRTUAL_ENV", "RBLN_DEVICES", "VLLM_PORT", "VLLM_HOST_IP", *OWN}
    assert gateway.plan("gateway", ComposedRequest([], None, composed([], None)), "/run").inherit == ALL


def test_nothing_is_listed_twice() -> None:
    listed = [*ENGINE, *PACKAGES]

    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("managed", [True, False])
def test_byte_code_is_kept_in_our_environments(tmp_path: Path, managed: bool) -> None:
    plan = fake_plan(tmp_path)
    plan = dataclasses.replace(plan, environment=dataclasses.replace(plan.environment, managed=managed))

    assert ("PYTHONDONTWRITEBYTECODE" in of_engine(plan, {"PYTHONDONTWRITEBYTECODE": "1"})) is not managed


def test_a_config_names_what_its_engine_inherits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "x")
    words = ["engine=llamacpp", "device=cpu", "engine.inherit=[MINE,NOBODYS,OTHER_*]"]
    engine, spec = resolve(settle(normalized(words), this_machine()).config, Machine(Ledger(tmp_path)))
    plan = engine.plan(spec)

    assert plan.inherit == ("MINE", "NOBODYS", "OTHER_*")
    assert "engine.inherit=NOBODYS: that variable is not set here" in plan.notes


@pytest.mark.parametrize("name", ["RMLAUNCH_SUPERVISOR", "'*_KEY'", "'A=b'", "''"])
def test_what_is_no_variable_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.inherit="):
        settle(normalized(["engine=llamacpp", "device=cpu", f"engine.inherit=[{name}]"]), this_machine())


@pytest.mark.parametrize(
    "words",
    [("engine=llamacpp", "device=cpu", "runtime=docker"), ("engine=remote", "engine.url=http://127.0.0.1:1/v1")],
)
def test_where_nothing_is_inherited_it_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    config = settle(normalized([*words, "engine.inherit=[MINE]"]), this_machine()).config

    with pytest.raises(PlanError, match=r"engine.inherit=\['MINE'\]: with runtime=(docker|none) no program inherits"):
        resolve(config, Machine(Ledger(tmp_path)))


def test_a_build_step_and_a_vendors_tool_get_what_an_engine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MY_SECRET_KEY", "LICENSE_SERVER", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    script = "import os, sys; open(sys.argv[1] + '/seen', 'w').write(' '.join(os.environ))"
    plan = fake_plan(tmp_path)
    step = BuildStep("it", (sys.executable, "-c", script, OUTPUT), str(tmp_path / "made"), plan.environment)

    builds.run(step, Progress(quiet=True), inherit=("LICENSE_*",))
    built = (tmp_path / "made/seen").read_text().split()
    told = ask([sys.executable, "-c", "import os; print(*os.environ)"], 20.0).out.decode().split()

    assert {"LICENSE_SERVER", "OMP_NUM_THREADS"} <= {*built}
    assert "OMP_NUM_THREADS" in told
    assert not {"MY_SECRET_KEY"} & {*built, *told}
    assert "LICENSE_SERVER" not in told


def test_uv_gets_the_settings_of_pip_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")

    given = environments._uv_env(())

    assert given["UV_FIND_LINKS"] == given["PIP_FIND_LINKS"] == "/wheels"
    assert "MY_SECRET_KEY" not in given
