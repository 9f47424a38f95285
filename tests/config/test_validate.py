"""Values that a type cannot refuse."""

from __future__ import annotations

import pytest

from engines.base import ConfigError
from launcher.config.cache import compose
from launcher.config.validate import check


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("model.id=../../x", r"model.id='../../x' cannot be used: up to 60 of A-Z a-z 0-9 . _ -"),
        ("name='a b'", "name='a b' cannot be used"),
        (f"name={'x' * 61}", "cannot be used: up to 60"),
        ("port=0", "port=0 is no port; give one from 1 to 65535, or leave port out"),
        ("port=-1", "port=-1 is no port"),
        ("grpc_port=65536", "grpc_port=65536 is no port"),
        ("metrics_port=8100", "metrics_port=8100 is the same as port; give each a port of its own"),
        ("device.count=0", "device.count=0 must be at least 1"),
        ("device.ids=[1,1]", r"device.ids=\[1, 1\] must name different devices"),
        ("device.ids=[-1]", "by numbers from 0 up"),
        ("device.ids=[]", r"device.ids=\[\] must name"),
        ("++model.build.rbln.num_devices=many", "model.build.rbln.num_devices='many' must be a whole number"),
        ("++model.build.rbln.batch_size=0", "model.build.rbln.batch_size=0 must be a whole number of at least 1"),
        ("model.context_length=-5", "model.context_length=-5 must be more than 0"),
        ("sampling.max_tokens=0", "sampling.max_tokens=0 must be more than 0"),
        ("sampling.temperature=-1", "sampling.temperature=-1.0 must not be negative"),
        ("supervise.max_crashes=0", "supervise.max_crashes=0 must be more than 0"),
        ("supervise.stop_grace_s=-1", "supervise.stop_grace_s=-1.0 must not be negative"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(compose(["engine=triton", "port=8100", word] if not word.startswith("port=") else [word]))


def test_device_ids_and_count_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"device.count=3, but device.ids=\[0, 1\] are 2; give one of them"):
        check(compose(["device.count=3", "device.ids=[0,1]"]))


def test_what_is_shipped_is_valid() -> None:
    check(compose([]))
