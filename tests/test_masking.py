"""What people are shown holds no secret."""

from __future__ import annotations

import pytest

from launcher.masking import mask_argv, mask_env, mask_url


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "my_token",
        "LLAMA_API_KEY",
        "APIKEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "PRIVATE_KEY",
        "passwd",
        "MYSQL_PWD",
        "DBPWD",
        "TRITON_PW",
        "HF_CREDS",
        "RBLN_AK",
        "RBLN_SK",
        "VLLM_DSN",
        "DSN",
        "HF_JWT",
    ],
)
def test_a_variable_that_is_named_like_a_secret_is_hidden(name: str) -> None:
    assert mask_env({name: "hunter2"}) == {name: "***"}


def test_other_variables_are_shown() -> None:
    env = {
        "PATH": "/usr/bin:/bin",
        "PWD": "/a",
        "OLDPWD": "/b",
        "TASK": "c",
        "GPU_TASK_DIR": "d",
        "HF_AKA": "e",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "URL": "http://host:1/path@2",
    }

    assert mask_env(env) == env


def test_a_password_in_the_url_of_any_variable_is_hidden() -> None:
    assert mask_env({"INDEX": "https://me:hunter2@host/simple"}) == {"INDEX": "https://***@host/simple"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:hunter2@host/simple", "https://***@host/simple"),
        ("https://hunter2@host/simple", "https://***@host/simple"),
        ("git+ssh://git:hunter2@host/repo.git@v1", "git+ssh://***@host/repo.git@v1"),
        ("a http://u:p@x/ and b http://v:q@y/", "a http://***@x/ and b http://***@y/"),
        ("https://host/simple", "https://host/simple"),
        ("me@host", "me@host"),
    ],
)
def test_the_user_of_a_url_is_hidden_and_the_rest_is_kept(text: str, masked: str) -> None:
    assert mask_url(text) == masked


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (("server", "--api-key", "hunter2", "--port", "1"), ("server", "--api-key", "***", "--port", "1")),
        (("server", "--api-key=hunter2"), ("server", "--api-key=***")),
        (("server", "--hf-token", "hunter2"), ("server", "--hf-token", "***")),
        (("server", "--api_key", "hunter2"), ("server", "--api_key", "***")),
        (("server", "--api-key-file", "/etc/keys"), ("server", "--api-key-file", "/etc/keys")),
        (("server", "--hub", "https://me:hunter2@host/"), ("server", "--hub", "https://***@host/")),
        (("server", "--port", "1", "api-key", "2"), ("server", "--port", "1", "api-key", "2")),
    ],
)
def test_the_value_of_a_flag_that_is_named_like_a_secret_is_hidden(
    argv: tuple[str, ...], masked: tuple[str, ...]
) -> None:
    assert mask_argv(argv) == masked


def test_a_secret_that_begins_with_a_dash_is_hidden_too() -> None:
    assert "-hunter2" not in mask_argv(("server", "--api-key", "-hunter2"))


def test_a_password_with_an_at_sign_is_hidden_whole() -> None:
    assert mask_url("https://me:hun@ter2@host/simple") == "https://***@host/simple"
