"""The protocol between processes: each record as this release writes it, and as others may have written it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.base import LaunchPlan
from launcher import dataclass_json, plan_json
from launcher.runtimes.base import Handle
from launcher.serving.hand_over import orders_for
from launcher.supervise import protocol
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import PROTOCOL, NewerError, News, Numbers, Orders, Record, Target
from tests.releases import NEWER, Before, changed
from tests.supervision import fake_plan, settings

BEFORE = Before(Path("/state"), 8001, pid=70, started=700, supervisor=7)
HANDLE = Handle(70, 700, BEFORE.data("state.json")["handle"]["boot_id"])


def of_news(data: dict[str, Any]) -> News:
    return News.of(data, "a")


def of_orders(data: dict[str, Any]) -> Orders:
    return Orders.loads(json.dumps(data).encode(), "a")


def of_target(data: dict[str, Any]) -> Target:
    return protocol.learned(Target, data, "a", "target")


def of_numbers(data: dict[str, Any]) -> Numbers:
    return protocol.learned(Numbers, data, "a", "metrics")


Read = Callable[[dict[str, Any]], Any]
READ: dict[str, Read] = {
    "state.json": of_news, "orders.json": of_orders, "target.json": of_target, "metrics.json": of_numbers
}  # fmt: skip
#: a record cannot do without them
REQUIRED = {
    "orders.json": {"plan", "runtime", "device", "folder", "policy", "stop_grace_s", "stable_s"},
    "target.json": {"plan"},
    "metrics.json": {"text"},
}


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return fake_plan(tmp_path)


def written(plan: LaunchPlan, tmp_path: Path) -> dict[str, bytes]:
    protocol.write_state(tmp_path, News())
    protocol.write_record(tmp_path, Record((1,), plan_json.public(plan)))
    orders = dataclasses.replace(orders_for(plan, tmp_path, settings(3, 5.0)), adopt=HANDLE)
    return {
        "orders": orders.dumps(),
        "handle in orders": json.dumps(json.loads(orders.dumps())["adopt"]).encode(),
        "news": News().line(),
        "state.json": (tmp_path / "state.json").read_bytes(),
        "handle": json.dumps(protocol.handle_record(HANDLE)).encode(),
        "plan.json": (tmp_path / "plan.json").read_bytes(),
        "request": protocol.request("stop"),
        "refusal": protocol.refusal("dance"),
        "target": Target(plan).line(),
        "metrics": Numbers("").line(),
    }


def test_each_record_says_which_protocol_it_is_of(plan: LaunchPlan, tmp_path: Path) -> None:
    found = {name: json.loads(text).get("protocol") for name, text in written(plan, tmp_path).items()}

    assert found == dict.fromkeys(found, PROTOCOL)


def test_what_is_written_is_read(plan: LaunchPlan, tmp_path: Path) -> None:
    orders = dataclasses.replace(orders_for(plan, tmp_path, settings(3, 5.0), "key", {"a": [1]}), adopt=HANDLE)
    news = News(Phase.FAILED, "why", pid=7, handle=protocol.handle_record(HANDLE), timings={"a": 0.5}, tail=("x",))
    target = Target(plan, {"a": 1}, "key")

    assert Orders.loads(orders.dumps()) == orders
    assert News.read(news.line(), "a") == news
    assert news.program() == HANDLE
    assert of_target(protocol.answered(target.line())) == target
    assert of_numbers(protocol.answered(Numbers("a 1\n").line())) == Numbers("a 1\n")
    assert protocol.requested(protocol.request("stop")) == "stop"
    protocol.write_record(tmp_path, Record((1, 2), {"device": {"kind": "gpu", "ids": [3]}, "runtime": "process"}))
    record = protocol.read_record(tmp_path)
    assert (record.ports, record.devices, record.runtime) == ((1, 2), ("gpu", (3,)), "process")


def test_what_the_release_before_wrote_is_read_as_it_was_meant() -> None:
    said = [News.read(line, "fake") for line in BEFORE.text("news.jsonl").encode().splitlines()]
    orders = Orders.loads(BEFORE.text("orders.json").encode(), "fake")
    target = of_target(BEFORE.data("target.json"))

    assert [(news.phase, news.protocol, news.reason, news.strange) for news in said] == [
        (phase, 0, "", ()) for phase in (Phase.READY, Phase.STOPPING, Phase.STOPPED)
    ]
    assert [news.program() for news in said] == [HANDLE, HANDLE, None]
    assert (orders.protocol, orders.plan, orders.detached, orders.api_key) == (0, target.plan, True, "sesame-open")
    assert (target.protocol, target.api_key, target.options) == (0, "sesame-open", {"protocol": "x"})
    assert (target.plan.engine, target.plan.endpoints.http.port) == ("llamacpp", 8001)
    assert 'rmlaunch_state{deployment="fake",state="READY"} 1' in of_numbers(BEFORE.data("metrics.json")).text
    assert "is not known; use follow" in protocol.answered(BEFORE.text("refusal.json").encode())["error"]


@pytest.mark.parametrize("number", [0, PROTOCOL, NEWER])
@pytest.mark.parametrize("file", READ)
def test_a_key_more_is_passed_over_whatever_the_number(file: str, number: int) -> None:
    data, read = BEFORE.data(file), READ[file]
    more = {"mood": "good", "strange": ["x"], "plan": {"mood": 1}, "handle": {"mood": 2}, "adopt": None}
    more = {key: value for key, value in more.items() if key in data or key in ("mood", "strange")}

    assert read(changed(data, {**more, "protocol": number})) == dataclasses.replace(
        read(data), protocol=number, **({"handle": {**data["handle"], "mood": 2}} if "handle" in data else {})
    )


@pytest.mark.parametrize("number", [0, PROTOCOL, NEWER])
@pytest.mark.parametrize(("file", "key"), [(file, key) for file in READ for key in BEFORE.data(file)])
def test_a_key_less_has_its_default_or_is_told(file: str, key: str, number: int) -> None:
    data, read = changed(BEFORE.data(file), {"protocol": number}), READ[file]
    less = changed(data, {key: ...})

    if key in REQUIRED.get(file, ()):
        with pytest.raises(NewerError if number > PROTOCOL else ValueError, match=rf"{key} is missing"):
            read(less)
    elif key == "state":
        assert (read(less).phase, "phase: None is not known" in read(less).reason) == (Phase.UNKNOWN, True)
    elif key == "handle":
        with pytest.raises(ValueError, match=r"^handle is missing$"):
            read(less).program()
    else:
        (field,) = [field for field in dataclasses.fields(read(data)) if field.name == key]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert read(less) == dataclasses.replace(read(data), **{key: default})


@pytest.mark.parametrize("key", ["container", "daemon", "keeper", "keeper_started", "version"])
def test_a_handle_with_a_key_less_is_filled_in(key: str) -> None:
    assert of_news(changed(BEFORE.data("state.json"), {"handle": {key: ...}})).program() == HANDLE


@pytest.mark.parametrize("key", ["pid", "started", "boot_id"])
def test_a_handle_that_names_nobody_is_told(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is missing$"):
        of_news(changed(BEFORE.data("state.json"), {"handle": {key: ...}})).program()


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("orders.json", {"policy": "strict"}, r"its orders are not understood: policy: 'strict' is no object"),
        (
            "target.json",
            {"plan": [1]},
            r"its supervisor's answer to target is not understood: plan: \[1\] is no object",
        ),
        ("metrics.json", {"text": 7}, r"its supervisor's answer to metrics is not understood: text: 7 is no str"),
    ],
)
def test_what_is_not_understood_of_a_newer_release_is_one_sentence(
    file: str, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(NewerError) as caught:
        READ[file](changed(BEFORE.data(file), {**change, "protocol": NEWER}))

    why = told.replace("\\", "")
    assert str(caught.value) == (
        f"a was started by a newer rmlaunch (protocol 7; this one speaks {PROTOCOL}): {why}; stop it with that "
        "version or `rmlaunch stop a --now`"
    )
    with pytest.raises(ValueError, match="is no "):
        READ[file](changed(BEFORE.data(file), change))


def test_a_state_of_a_newer_release_that_is_not_known_is_told_in_one_sentence() -> None:
    news = of_news(changed(BEFORE.data("state.json"), {"protocol": NEWER, "state": "HIBERNATING", "starts": 2}))

    assert (news.phase, news.starts, news.program()) == (Phase.UNKNOWN, 2, HANDLE)
    assert news.reason == (
        f"a was started by a newer rmlaunch (protocol 7; this one speaks {PROTOCOL}): its supervisor's word is not "
        "understood: phase: 'HIBERNATING' is not known; stop it with that version or `rmlaunch stop a --now`"
    )


@pytest.mark.parametrize("number", ["7", 1.5, True, None])
def test_a_number_that_is_none_is_told_as_any_other_key(number: object) -> None:
    assert "protocol: " in of_news(changed(BEFORE.data("state.json"), {"protocol": number})).reason
    with pytest.raises(ValueError, match=r"^protocol: "):
        of_orders(changed(BEFORE.data("orders.json"), {"protocol": number}))


@pytest.mark.parametrize(
    ("change", "ports", "devices", "runtime"),
    [
        ({}, (8001,), ("cpu", (0,)), "process"),
        ({"protocol": NEWER, "mood": "good", "plan": {"mood": 1}}, (8001,), ("cpu", (0,)), "process"),
        ({"ports": ...}, (), ("cpu", (0,)), "process"),
        ({"ports": "all"}, (), ("cpu", (0,)), "process"),
        ({"plan": ...}, (8001,), ("", ()), None),
        ({"plan": 7}, (8001,), ("", ()), None),
        ({"plan": {"device": "gpu", "runtime": 7}}, (8001,), ("", ()), None),
        ({"plan": {"device": {"ids": ...}}}, (8001,), ("", ()), "process"),
        ({"plan": {"device": {"ids": ["0"]}}}, (8001,), ("", ()), "process"),
    ],
)
def test_a_plan_on_disk_is_taken_as_far_as_it_is_understood(
    tmp_path: Path, change: dict[str, Any], ports: tuple[int, ...], devices: object, runtime: str | None
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(changed(BEFORE.data("plan.json"), change)))

    record = protocol.read_record(tmp_path)

    assert (record.ports, record.devices, record.runtime) == (ports, devices, runtime)
    assert record.protocol == change.get("protocol", 0)


def test_the_orders_that_are_handed_on_are_of_this_release() -> None:
    """An adopter is of this release, whoever wrote the orders that were kept."""
    orders = of_orders(changed(BEFORE.data("orders.json"), {"protocol": NEWER}))

    assert Orders.loads(orders.dumps()) == dataclasses.replace(orders, protocol=PROTOCOL)
    assert dataclass_json.load(Handle, protocol.handle_record(HANDLE)) == HANDLE
