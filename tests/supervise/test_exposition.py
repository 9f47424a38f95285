"""A supervisor's numbers, as Prometheus' own parser reads them."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from launcher.supervise.exposition import render, serve
from launcher.supervise.lifecycle import Phase
from tests.supervision import free_port, wait_for


def test_every_number_is_a_sample_with_its_deployment() -> None:
    text = render('a"b\\', Phase.READY, 3, 1, {"startup_s": 0.5, "liveness_s": 0.25}, {-9: 2, 1: 1})

    families = {family.name: family for family in text_string_to_metric_families(text)}

    def values(name: str, label: str) -> dict[str, float]:
        return {sample.labels.get(label, ""): sample.value for sample in families[name].samples}

    assert {sample.labels["deployment"] for family in families.values() for sample in family.samples} == {'a"b\\'}
    assert {state for state, value in values("rmlaunch_state", "state").items() if value} == {"READY"}
    assert len(values("rmlaunch_state", "state")) == len(Phase)
    assert values("rmlaunch_starts", "") == {"": 3.0}
    assert values("rmlaunch_crashes_in_a_row", "") == {"": 1.0}
    assert values("rmlaunch_exits", "code") == {"-9": 2.0, "1": 1.0}
    assert values("rmlaunch_seconds", "part") == {"startup": 0.5, "liveness": 0.25}
    assert {name: family.type for name, family in families.items()} == {
        "rmlaunch_state": "gauge", "rmlaunch_starts": "counter", "rmlaunch_crashes_in_a_row": "gauge",
        "rmlaunch_exits": "counter", "rmlaunch_seconds": "gauge",
    }  # fmt: skip


def test_clients_that_say_nothing_are_few_and_others_are_answered_after_them() -> None:
    port, before = free_port(), set(threading.enumerate())
    serve(port, lambda: "a 1\n", patience_s=60)  # longer than a slow machine takes for the 40
    url = f"http://127.0.0.1:{port}/metrics"
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=5)  # all 40 were taken before it
        assert len(set(threading.enumerate()) - before) <= 1 + 8

    def answered() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(url, timeout=5).text == "a 1\n"
        return False

    wait_for(answered)
