"""Overrides become a typed config, or one line that says what to write instead."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from engines.base import ConfigError
from launcher.config.compose import compose, normalized, options
from launcher.config.schema import DeviceConf, LaunchConfig, ModelConf, engine_conf

pytestmark = pytest.mark.usefixtures("_composed_anew")

MINE = """\
# A model of the user's own.
defaults:
  - base_model
  - _self_

id: mine
source: file:/models/mine.gguf
task: generate
context_length: 512
dtype: float32
chat: false
"""


def refusal(*overrides: str, config_dir: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def user_models() -> Path:
    folder = Path(os.environ["XDG_CONFIG_HOME"], "rmlaunch/model")
    folder.mkdir(parents=True)
    return folder


def test_overrides_become_typed_objects_with_our_defaults() -> None:
    config = compose(["engine=triton", "device=cpu", "model=smollm2", "port=8123", "engine.workers=3"])

    assert isinstance(config, LaunchConfig)
    assert isinstance(config.engine, engine_conf("triton"))
    assert isinstance(config.model, ModelConf)
    assert (config.engine.name, vars(config.engine)["workers"]) == ("triton", 3)
    assert config.device == DeviceConf(kind="cpu", ids=None, count=None, assume=None)
    assert (config.host, config.port, config.prompt, config.name) == ("127.0.0.1", 8123, None, None)


def test_composing_twice_gives_equal_configs() -> None:
    assert compose(["engine=triton"]) == compose(["engine=triton"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine=tritn", "engine 'tritn' not found; did you mean 'triton'? available: "),
        ("device=rblm", "device 'rblm' not found; did you mean 'rbln'? available: "),
        ("model=smollm", "model 'smollm' not found; did you mean 'smollm2'? available: "),
        ("runtime=proces", "runtime 'proces' not found; did you mean 'process'? available: "),
    ],
)
def test_an_unknown_option_names_the_nearest_and_all(override: str, message: str) -> None:
    group = override.partition("=")[0]

    assert refusal(override) == message + ", ".join(options(group))


def test_an_option_that_is_like_nothing_lists_all_without_a_guess() -> None:
    assert refusal("device=zzz") == f"device 'zzz' not found; available: {', '.join(options('device'))}"


def test_the_schemas_are_not_offered_as_options() -> None:
    assert "base_" not in refusal("engine=nope")


@pytest.mark.parametrize("key", ["prt", "+prt", "++prt"])
def test_an_unknown_key_is_refused_however_it_is_written(key: str) -> None:
    start, _, known = refusal(f"{key}=1").partition(" keys: ")

    assert start == "unknown key 'prt'; did you mean 'port'?"
    assert set(LaunchConfig.__dataclass_fields__) == set(known.split(", ")) - {"hydra"}


@pytest.mark.parametrize("key", ["engine.workrs", "+engine.workrs", "++engine.workrs"])
def test_an_unknown_nested_key_is_refused_however_it_is_written(key: str) -> None:
    known = ", ".join(sorted(field.name for field in dataclasses.fields(engine_conf("triton"))))

    assert refusal("engine=triton", f"{key}=1") == (
        f"unknown key 'engine.workrs'; did you mean 'engine.workers'? keys of engine: {known}"
    )


def test_an_unknown_group_is_an_unknown_key() -> None:
    assert refusal("+unknown=1").startswith("unknown key 'unknown'; keys: api_key, ")
    assert refusal("enginee=triton").startswith("unknown key 'enginee'; did you mean 'engine'? keys: api_key, ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port=abc", "port: Value 'abc' of type 'str' could not be converted to Integer"),
        ("model.context_length=1.5k", "model.context_length: Value '1.5k' of type 'str' could not be converted to"),
        ("model.chat=perhaps", "model.chat: Value 'perhaps' is not a valid bool"),
        ("sampling.stop=3", "sampling.stop: "),
        ("host=null", "host: "),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(override: str, message: str) -> None:
    assert refusal(override).startswith(message)


@pytest.mark.parametrize("word", ["triton", "engine.program=[1", "model={a", "a b=1"])
def test_what_is_no_override_is_quoted_with_the_right_form(word: str) -> None:
    message = refusal(word)

    assert message.startswith("cannot read ")
    assert word in message
    assert "an override is written key=value" in message


def test_a_sweep_where_one_value_is_wanted_is_refused() -> None:
    assert "engine=triton,llamacpp" in refusal("engine=triton,llamacpp")


def test_a_mapping_that_only_one_engine_has_takes_new_keys_too() -> None:
    config = compose(normalized(["engine=vllm", "engine.lora.mine=/adapter", "engine.speculative_config.model=/draft"]))

    assert (vars(config.engine)["lora"], vars(config.engine)["speculative_config"]) == (
        {"mine": "/adapter"},
        {"model": "/draft"},
    )


def test_a_new_key_of_a_free_form_mapping_needs_no_plus() -> None:
    free = ["engine.args.x=1", "engine.env.MY_VAR=on", "engine.images.cpu=me/mine", "model.build.rbln.a=2"]
    config = compose(normalized(["engine=llamacpp", *free]))

    assert config.engine.args == {**compose(["engine=llamacpp"]).engine.args, "x": 1}
    assert config.engine.env["MY_VAR"] == "on"
    assert config.engine.images["cpu"] == "me/mine"
    assert config.model.build["rbln"]["a"] == 2


def test_the_requirements_of_an_environment_can_be_replaced() -> None:
    config = compose(normalized(["engine=llamacpp", "engine.environments.cpu.requirements=['mine==1']"]))

    assert config.engine.environments["cpu"].requirements == ["mine==1"]


def test_a_model_in_the_users_folder_is_an_option(user_models: Path) -> None:
    (user_models / "mine.yaml").write_text(MINE)

    assert compose(["model=mine"]).model.source == "file:/models/mine.gguf"
    assert "mine" in options("model")
    assert "available: " in (message := refusal("model=min"))
    assert "did you mean 'mine'?" in message


def test_a_model_in_config_dir_is_an_option_of_that_call_only(tmp_path: Path) -> None:
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text(MINE)

    assert compose(["model=mine"], str(tmp_path / "conf")).model.id == "mine"
    assert "did you mean 'mine'? available: " in refusal("model=min", config_dir=str(tmp_path / "conf"))
    assert refusal("model=mine").startswith("model 'mine' not found; ")


def test_config_dir_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    assert compose(["model=mine"], "conf").model.id == "mine"


def test_a_config_dir_that_is_not_there_is_refused() -> None:
    assert refusal("model=smollm2", config_dir="/nowhere").startswith("--config-dir '/nowhere' is not a folder; ")


def test_a_misspelt_key_in_a_users_file_is_refused(user_models: Path) -> None:
    (user_models / "mine.yaml").write_text(MINE.replace("dtype:", "dtpe:"))

    assert "dtpe" in refusal("model=mine")


def test_a_value_that_a_users_file_leaves_out_is_named(user_models: Path) -> None:
    (user_models / "mine.yaml").write_text(MINE.replace("dtype: float32\n", ""))

    assert "dtype" in refusal("model=mine")


def test_composing_inside_another_hydra_application_leaves_that_alone(tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer/app.yaml").write_text("question: 6 * 7\nanswer: 42\n")

    with initialize_config_dir(str(tmp_path / "outer"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        before = hydra_compose("app")

        config = compose(["engine=triton", "port=8123"])
        refusal("engine=tritn")

        assert GlobalHydra.instance().hydra is outer
        assert OmegaConf.to_container(hydra_compose("app", ["answer=43"])) == {"question": "6 * 7", "answer": 43}
        assert OmegaConf.to_container(before) == {"question": "6 * 7", "answer": 42}

    assert (config.engine.name, config.port) == ("triton", 8123)
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("quote", ["", "'"])
def test_a_source_with_the_name_of_a_file_needs_no_quotes(quote: str) -> None:
    source = "hf:org/name@main!weights-q4.gguf"

    assert compose(normalized([f"model.source={quote}{source}{quote}"])).model.source == source


def test_several_sources_are_a_sweep() -> None:
    assert normalized(["model.source=hf:a/b!c,hf:a/b!d"]) == ["model.source=hf:a/b!c,hf:a/b!d"]
