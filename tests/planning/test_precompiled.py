"""A model that another release of the SDK has compiled is refused before the launch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.base import Environment, PlanError
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine, this_machine
from launcher.planning.precompiled import check
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle

PINNED = Environment("triton-rbln", "/env", "3.12", requirements=("vllm-rbln==0.12.0", "optimum-rbln==0.12.0"))


def compiled(folder: Path, **config: object) -> Path:
    (folder / "rbln_config.json").write_text(json.dumps(config))
    return folder


def test_one_of_the_same_release_passes(tmp_path: Path) -> None:
    for version in ("0.12.0", "0.12.1", "0.12.0+g1234"):
        check("rbln", compiled(tmp_path, optimum_rbln_version=version), PINNED)


@pytest.mark.parametrize("version", ["0.11.2", "0.13.0", "1.12.0"])
def test_one_of_another_release_is_refused_with_both_versions_and_both_ways_out(tmp_path: Path, version: str) -> None:
    with pytest.raises(PlanError) as caught:
        check("rbln", compiled(tmp_path, optimum_rbln_version=version), PINNED)

    assert str(caught.value) == (
        f"model.source: {tmp_path} was compiled by optimum-rbln {version}, but triton-rbln serves with 0.12.0; give "
        "the original model as model.source, and it is compiled again, or serve with the version that made it: "
        "engine.environment=/path/of/one, or engine.environments.rbln.requirements with "
        f"optimum-rbln=={version}"
    )


def test_an_environment_of_the_users_own_has_the_version_that_is_installed(tmp_path: Path) -> None:
    env = tmp_path / "env"
    (env / "lib/python3.12/site-packages/optimum_rbln-0.11.2.dist-info").mkdir(parents=True)
    owned = Environment("triton-rbln", str(env), "3.12", managed=False)

    check("rbln", compiled(tmp_path, optimum_rbln_version="0.11.0"), owned)
    with pytest.raises(PlanError, match=r"was compiled by optimum-rbln 0\.12\.0, but triton-rbln serves with 0\.11\.2"):
        check("rbln", compiled(tmp_path, optimum_rbln_version="0.12.0"), owned)


def test_what_old_releases_wrote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="was compiled by an SDK that kept `_meta`"):
        check("rbln", compiled(tmp_path, _meta={}), PINNED)


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rbln_config.json").write_text('{"optimum')

    with pytest.raises(PlanError, match=r"rbln_config\.json cannot be read: .*; compile the model again"):
        check("rbln", tmp_path, PINNED)


@pytest.mark.parametrize(
    ("model_format", "config"),
    [("safetensors", {"optimum_rbln_version": "0.1.0"}), ("rbln", {}), ("rbln", {"optimum_rbln_version": 3})],
)
def test_where_nothing_is_said_nothing_is_claimed(tmp_path: Path, model_format: str, config: dict[str, object]) -> None:
    check(model_format, compiled(tmp_path, **config), PINNED)
    check("rbln", tmp_path / "none", PINNED)
    check("rbln", compiled(tmp_path, optimum_rbln_version="0.1.0"), Environment("e", "/no", "3.12"))


@pytest.mark.parametrize("engine", ["vllm", "triton", "torchserve"])
def test_a_launch_of_one_is_refused_while_it_is_planned(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    compiled(folder, optimum_rbln_version="0.10.3")
    words = [f"engine={engine}", "device=rbln", f"model.source=file:{folder}", "model.id=m"]

    with pytest.raises(PlanError, match=r"was compiled by optimum-rbln 0\.10\.3, but .* serves with 0\.12\.0"):
        resolve(settle(words, this_machine()).config, Machine(Ledger(tmp_path / "state")))
