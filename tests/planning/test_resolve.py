"""What is decided where the machine is looked at: keys, runtimes, products, the number of devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import ConfigError, PlanError, RequestError, ServeSpec
from launcher.deployments.ledger import Ledger
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.serving.config import ServingConfig, create_serving_engine
from launcher.serving.engine import launch


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
    device = spec_of(tmp_path, "engine=triton", "device=rbln", "device.assume=RBLN-CR03", "device.count=2").device

    assert (device.product, device.ids, device.assumed) == ("RBLN-CR03", (0, 1), True)


@pytest.mark.parametrize("key", ["product", "assume"])
def test_a_product_that_nobody_knows_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(RequestError, match=r"device\.assume='RBLN-XX' is no RBLN NPU that is known; known: RBLN-CA12"):
        spec_of(tmp_path, "engine=triton", "device=rbln", f"device.{key}=RBLN-XX")


# ------------------------------------------------------------------------------------- device.product, the older name


@pytest.mark.parametrize(
    ("kind", "engine", "product", "meant"),
    [
        ("gpu", "vllm", "H200", "NVIDIA H200"),
        ("rbln", "vllm", "RBLN-CA25", "RBLN-CA25"),
        ("furiosa", "furiosa", "RNGD", "RNGD"),
    ],
)
def test_the_older_name_of_the_key_means_the_same_and_is_told_once(
    tmp_path: Path, kind: str, engine: str, product: str, meant: str
) -> None:
    words = [f"engine={engine}", f"device={kind}", "device.count=4", "model=llama3-8b", "runtime=process"]
    settled = settle([*words, f"device.product={product}"], this_machine())

    assert settled.reasons == (
        f"device.product={product} is taken for device.assume={product}, as that key is called now",
    )
    assert settled.config == settle([*words, f"device.assume={product}"], this_machine()).config
    assert spec_of(tmp_path, *words, f"device.product={product}").device.product == meant


def test_a_file_of_the_users_own_may_have_either_name(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    for key in ("product", "assume"):
        file = tmp_path / f"device/mine-{key}.yaml"
        file.write_text(f"defaults: [rbln, _self_]\n{key}: RBLN-CR03\n")
        settled = settle(
            ["engine=triton", f"device=mine-{key}", "model=llama3-8b", "runtime=process"], this_machine(), str(tmp_path)
        )

        assert (settled.config.device.assume, settled.config.device.product) == ("RBLN-CR03", None)
        assert len(settled.reasons) == (1 if key == "product" else 0)


def test_python_may_use_either_name() -> None:
    engine, overrides = "engine=furiosa", ["device.product=RNGD", "device.count=2"]
    config = ServingConfig(engine="furiosa", device="furiosa", overrides=overrides)

    for launched in (create_serving_engine(config), launch(engine, "device=furiosa", *overrides)):
        assert launched.config.device.assume == "RNGD"
        assert "device.product=RNGD is taken for device.assume=RNGD" in launched.reasons[0]


def test_both_names_may_say_the_same_and_nothing_else() -> None:
    words = ["engine=triton", "device=rbln", "device.product=RBLN-CA25"]

    assert settle([*words, "device.assume=RBLN-CA25"], this_machine()).config.device.assume == "RBLN-CA25"
    both = r"device\.product='RBLN-CA25' and device\.assume='RBLN-CR03' are one key; give device\.assume alone"
    with pytest.raises(ConfigError, match=both) as refused:
        settle([*words, "device.assume=RBLN-CR03"], this_machine())
    assert refused.value.exit_code == 2


def test_a_task_that_the_engine_cannot_do_is_refused(tmp_path: Path) -> None:
    tensors = "[{name: x, dtype: float32, shape: [-1, 4]}]"

    with pytest.raises(PlanError, match=r"engine=llamacpp on cpu cannot do model\.task=tensor; it can do: gen"):
        spec_of(
            tmp_path, "engine=llamacpp", "device=cpu", "model.task=tensor",
            f"model.inputs={tensors}", f"model.outputs={tensors}",
        )  # fmt: skip
