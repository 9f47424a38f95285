"""What is decided where the machine is looked at: keys, runtimes, products, the number of devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import ConfigError, PlanError, RequestError, ServeSpec
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle


def spec_of(tmp_path: Path, *overrides: str) -> ServeSpec:
    return resolve(settle(overrides, this_machine()).config, Machine(Ledger(tmp_path / "state")))[1]


def test_a_key_comes_from_the_variable_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")

    assert spec_of(tmp_path, "engine=llamacpp", "engine.api_key_env=MY_KEY").api_key == "sesame"
    assert spec_of(tmp_path, "engine=llamacpp", "engine.api_key_env=MY_KEY", "api_key=other").api_key == "other"
    assert spec_of(tmp_path, "engine=llamacpp").api_key is None


def test_a_variable_that_is_named_and_not_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)

    with pytest.raises(ConfigError, match=r"engine\.api_key_env=MY_KEY, but that variable is not set"):
        settle(["engine=llamacpp", "engine.api_key_env=MY_KEY"], this_machine())


def test_a_runtime_that_the_engine_cannot_use_is_refused() -> None:
    with pytest.raises(PlanError, match="engine=llamacpp cannot use runtime=none; it can use: process"):
        settle(["engine=llamacpp", "runtime=none"], this_machine())


def test_a_product_describes_hardware_that_is_not_here(tmp_path: Path) -> None:
    device = spec_of(tmp_path, "engine=triton", "device=rbln", "device.product=RBLN-CR03", "device.count=2").device

    assert (device.product, device.ids, device.assumed) == ("RBLN-CR03", (0, 1), True)


@pytest.mark.parametrize("key", ["product", "assume"])
def test_a_product_that_nobody_knows_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(RequestError, match=rf"device\.{key}='RBLN-XX' is no RBLN NPU that is known; known: RBLN-CA12"):
        spec_of(tmp_path, "engine=triton", "device=rbln", f"device.{key}=RBLN-XX")


def test_a_task_that_the_engine_cannot_do_is_refused(tmp_path: Path) -> None:
    tensors = "[{name: x, dtype: float32, shape: [-1, 4]}]"

    with pytest.raises(PlanError, match=r"engine=llamacpp on cpu cannot do model\.task=tensor; it can do: gen"):
        spec_of(
            tmp_path, "engine=llamacpp", "device=cpu", "model.task=tensor",
            f"model.inputs={tensors}", f"model.outputs={tensors}",
        )  # fmt: skip
