"""`ServingConfig` in the words of the command line, and what they compose to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engines.base import ConfigError
from launcher import DeviceTarget, ServingConfig, ServingEngineType, create_serving_engine, registry
from launcher.config.cache import compose
from launcher.config.compose import normalized


def test_every_engine_and_device_of_ours_has_a_name_in_python() -> None:
    assert sorted(kind.value for kind in ServingEngineType) == sorted([*registry.names("engine"), "auto"])
    assert sorted(kind.value for kind in DeviceTarget) == sorted([*registry.names("device"), "auto"])


def test_what_is_left_out_is_left_to_the_configuration() -> None:
    assert ServingConfig().as_overrides() == ["engine=auto", "device=auto"]


def test_every_field_arrives_in_the_composed_config() -> None:
    config = ServingConfig(
        engine=ServingEngineType.TRITON,
        device=DeviceTarget.CPU,
        model="hf:org/it's@v1",
        runtime="process",
        name="mine",
        host="127.0.0.1",
        port=8123,
        api_key="a,b'c",
        device_ids=[0],
        engine_options={"workers": 3, "protocol": "http"},
        engine_args={"log_verbose": 1, "exact": True, "ratio": 0.5, "nested": {"a": [1, "x y"]}, "unset": None},
        env={"OMP_NUM_THREADS": "2"},
        overrides=["supervise.max_crashes=1"],
    )
    with pytest.raises(ConfigError, match="is not understood"):
        config.as_overrides()

    composed = compose(normalized(dataclasses.replace(config, model="hf:org/its@v1").as_overrides()))

    engine = composed.engine
    assert (engine.name, vars(engine)["workers"], vars(engine)["protocol"]) == ("triton", 3, "http")
    assert engine.args == {"log_verbose": 1, "exact": True, "ratio": 0.5, "nested": {"a": [1, "x y"]}, "unset": None}
    assert engine.env == {"OMP_NUM_THREADS": "2"}
    assert (composed.model.id, composed.model.source) == ("its", "hf:org/its@v1")
    assert (composed.device.kind, composed.device.ids, composed.runtime.name) == ("cpu", [0], "process")
    assert (composed.name, composed.host, composed.port, composed.api_key) == ("mine", "127.0.0.1", 8123, "a,b'c")
    assert composed.supervise.max_crashes == 1


def test_a_value_that_no_config_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a object; a config holds texts, numbers, lists and mappings"):
        ServingConfig(engine_args={"x": object()}).as_overrides()


def test_an_engine_is_made_and_not_started() -> None:
    engine = create_serving_engine(ServingConfig(engine="llamacpp", device="cpu"))

    assert (engine.engine_type, engine.config.device.kind, engine.is_running) == ("llamacpp", "cpu", False)
    assert engine.is_available()
    assert engine.supported_devices() == ("cpu", "gpu")


def test_another_model_is_one_call_and_keeps_everything_else() -> None:
    engine = create_serving_engine(ServingConfig(engine="triton", device="cpu", engine_options={"workers": 3}))

    engine.load_model("gpt2")
    assert (engine.config.model.id, vars(engine.config.engine)["workers"]) == ("gpt2", 3)
    engine.load_model("org/some-model")
    assert (engine.config.model.id, engine.config.model.source) == ("some-model", "hf:org/some-model")
    with pytest.raises(ConfigError, match="is not understood"):
        engine.load_model("no such:model")
    assert engine.config.model.id == "some-model"


def test_what_the_engine_does_not_have_is_refused_by_its_name(tmp_path: Path) -> None:
    engine = create_serving_engine(ServingConfig(engine="llamacpp", device="cpu"))

    with pytest.raises(Exception, match="engine=llamacpp has no model repository; engine=triton has"):
        engine.setup_model_repository(tmp_path)
    with pytest.raises(Exception, match="engine=llamacpp has no model archive; engine=torchserve has"):
        engine.create_model_archive()
    with pytest.raises(Exception, match="not running"):
        engine.get_metrics()
