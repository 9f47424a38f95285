"""A key that a server writes into a file: what else it may put there is refused in one sentence, and at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import InferenceError
from engines.endpoint import KeyFile


def a_link_to_a_secret(file: Path) -> None:
    secret = file.with_name("secret")
    secret.write_text(json.dumps({"inference": {"key": "the host's"}}))
    file.symlink_to(secret)


def large(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 33)


def a_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def holding(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def test_the_key_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for key in ("one", "two"):
        file.write_text(json.dumps({"inference": {"key": key}}))
        assert KeyFile(str(file), "inference.key").read() == key


@pytest.mark.parametrize(
    "made",
    [
        a_link_to_a_secret,
        large,
        a_device,
        os.mkfifo,
        Path.mkdir,
        holding("[" * 50000),
        holding('{"inference": {"key": {"key": 1}}}'),
        holding('{"inference": {"key": "a\\r\\nHost: b"}}'),
        holding('{"inference": {"key": ""}}'),
        holding('{"inference": 1}'),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, made: Callable[[Path], object]) -> None:
    made(tmp_path / "keys.json")

    with pytest.raises(InferenceError, match=r"the server has written no key 'inference.key' to /"):
        KeyFile(str(tmp_path / "keys.json"), "inference.key").read()
