"""What clients and people ask of the gateway: models, keys, limits, numbers, and the official client."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from engines.base import ConfigError
from engines.dialect import OpenAI
from launcher.atomic import write_text
from launcher.config.gateway import Member, Rule, Startable
from launcher.gateway.compose_process import composed, without_keys
from launcher.gateway.reload import ComposedRequest, Reloader, marks
from launcher.gateway.routing import Upstream
from launcher.gateway.settings import Key, Settings, hashed
from tests.gateway.harness import Fake, NoMachine, Running, events, gateway, route, settings, until

ALICE, BOB, ADMIN = "alice-has-a-long-key", "bob-has-a-long-key-too", "the-admin-has-one-as-well"


@pytest.fixture(scope="module")
def it(a: Fake, b: Fake) -> Iterator[Running]:
    with gateway(settings({"m": [a.member], "n": [b.member]})) as running:
        yield running


@pytest.fixture
def guarded(a: Fake) -> Iterator[Running]:
    keys = [Key("alice", hashed(ALICE, ""), ["m"], max_concurrency=1), Key("bob", hashed(BOB, ""))]
    with gateway(settings({"m": [a.member], "n": [a.member]}, keys=keys, admin_sha256=hashed(ADMIN, ""))) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ----------------------------------------------------------------------------------------------------------- surface


def test_the_body_reaches_the_server_as_it_was_written(it: Running, a: Fake) -> None:
    body = '{"model":"m", "messages":[{"role":"user","content":"Hi"}], "tools":[{"type":"function"}], "x": 1.50}'

    requests.post(f"{it.url}/v1/chat/completions", data=body, timeout=5)

    assert a.asked[-1]["raw"] == body.replace('"m"', '"theirs"')
    assert a.asked[-1]["path"] == "/v1/chat/completions"


def test_the_answer_has_the_name_that_was_asked_for(it: Running) -> None:
    answer = it.ask("hi")

    assert (answer.json()["model"], answer.json()["served_by"]) == ("m", "a")
    assert {event["model"] for event in events(it.ask("hi", stream=True)) if event != "[DONE]"} == {"m"}


def test_everything_is_also_below_api(it: Running) -> None:
    assert requests.get(f"{it.url}/api/v1/models", timeout=5).json()["data"][0]["id"] == "m"
    assert requests.get(f"{it.url}/api/health", timeout=5).json() == {"status": "ok"}


def test_models_are_listed_and_each_can_be_asked_about(it: Running) -> None:
    listed = requests.get(f"{it.url}/v1/models", timeout=5).json()

    assert listed["object"] == "list"
    assert [row["id"] for row in listed["data"]] == ["m", "n"]
    assert requests.get(f"{it.url}/v1/models/n", timeout=5).json() == listed["data"][1]
    assert requests.get(f"{it.url}/v1/models/o", timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/health"), ("PUT", "/v1/models")]
)
def test_a_wrong_method_is_told_the_right_one(it: Running, method: str, path: str) -> None:
    answer = requests.request(method, f"{it.url}{path}", timeout=5)

    assert answer.status_code == 405
    assert answer.headers["allow"] in ("POST", "GET")


def test_head_is_get_without_the_body(it: Running) -> None:
    answer = requests.head(f"{it.url}/health", timeout=5)

    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "16", b"")


def test_connections_are_kept(it: Running) -> None:
    with requests.Session() as session:
        for _ in range(3):
            session.get(f"{it.url}/health", timeout=5)
        assert sum(connection.idle_since is not None for connection in it.server.connections) >= 1
    until(lambda: not it.server.connections)


def test_numbers_are_in_prometheus_format(a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        it.ask("hi")
        it.ask("hi", stream=True).close()
        it.ask("hi", model="unknown")
        until(lambda: sum(it.server.table.routes["m"].codes.values()) == 2)
        text = requests.get(f"{it.url}/metrics", timeout=5).text

    found = {(sample.name, *sample.labels.values()): sample.value for family in text_string_to_metric_families(text)
             for sample in family.samples}  # fmt: skip
    assert found["rmlaunch_gateway_requests_total", "200", "m"] >= 1
    assert found["rmlaunch_gateway_refusals_total", "404"] == 1
    assert found["rmlaunch_gateway_request_seconds_count", "m"] == 2
    assert found["rmlaunch_gateway_replica_up", "a"] == 1
    assert found["rmlaunch_gateway_in_flight", "m"] == 0


def test_the_page_and_the_description_of_the_api_come_without_anything_from_elsewhere(it: Running) -> None:
    page = requests.get(f"{it.url}/", timeout=5)

    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http://" not in page.text
    assert "https://" not in page.text
    paths = requests.get(f"{it.url}/openapi.json", timeout=5).json()["paths"]
    assert {"/v1/chat/completions", "/models/{name}/load", "/metrics"} <= paths.keys()


# -------------------------------------------------------------------------------------------------------------- keys


def test_without_a_key_nothing_but_health_is_told(guarded: Running) -> None:
    assert requests.get(f"{guarded.url}/health", timeout=5).status_code == 200
    for path in ("/v1/models", "/metrics", "/models", "/state", "/models/a/log"):
        answer = requests.get(f"{guarded.url}{path}", timeout=5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert guarded.ask("hi").status_code == 401


@pytest.mark.parametrize("given", ["wrong", ALICE[:-1], f"{ALICE}x", "", hashed(ALICE, "")])
def test_a_wrong_key_opens_nothing(guarded: Running, given: str) -> None:
    assert guarded.ask("hi", headers=bearer(given)).status_code == 401


def test_a_key_asks_its_own_routes_and_sees_no_others(guarded: Running) -> None:
    assert guarded.ask("hi", headers=bearer(ALICE)).status_code == 200
    assert guarded.ask("hi", model="n", headers=bearer(ALICE)).json()["error"]["code"] == "model_not_found"
    assert guarded.ask("hi", model="n", headers=bearer(BOB)).status_code == 200
    seen = {
        key: requests.get(f"{guarded.url}/v1/models", headers=bearer(key), timeout=5).json() for key in (ALICE, BOB)
    }
    assert [[row["id"] for row in seen[key]["data"]] for key in (ALICE, BOB)] == [["m"], ["m", "n"]]
    assert "'n'" not in guarded.ask("hi", model="x", headers=bearer(ALICE)).json()["error"]["message"]


def test_a_keys_requests_wait_for_each_other_and_for_nobody_elses(guarded: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        hers = [pool.submit(guarded.ask, "slow 0.3", headers=bearer(ALICE)) for _ in range(3)]
        until(lambda: len(guarded.server.admission.waiting) == 2)
        assert guarded.ask("hi", headers=bearer(BOB)).status_code == 200
        assert time.monotonic() - began < 0.3
        assert [answer.result().status_code for answer in hers] == [200, 200, 200]
    assert time.monotonic() - began >= 0.9


def test_starting_and_stopping_takes_the_admins_key(guarded: Running, it: Running) -> None:
    def load(running: Running, **headers: Any) -> requests.Response:
        return requests.post(f"{running.url}/models/a/load", headers=headers, timeout=5)

    assert load(guarded).status_code == 401
    assert load(guarded, **bearer(BOB)).status_code == 401
    assert load(guarded, **bearer(ADMIN)).json() == {"name": "a", "state": "READY"}
    refused = load(it)
    assert (refused.status_code, "gateway.admin_key" in refused.json()["error"]["message"]) == (403, True)


def test_the_key_of_a_server_behind_is_ours_to_send(a: Fake) -> None:
    theirs = Member("a", url=a.member.url, model="theirs", api_key_env="THEIR_KEY")
    keys = [Key("alice", hashed(ALICE, ""))]
    with gateway(settings({"m": [theirs]}, keys=keys)) as it:
        it.ask("hi", headers=bearer(ALICE))

    assert a.asked[-1]["headers"]["authorization"] == "Bearer their-secret"


def test_an_admins_key_alone_closes_what_is_the_admins_and_nothing_else_on_loopback(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, admin_sha256=hashed(ADMIN, ""))) as it:
        assert it.ask("hi").status_code == 200
        assert requests.get(f"{it.url}/state", timeout=5).status_code == 401
        assert requests.get(f"{it.url}/state", headers=bearer(ADMIN), timeout=5).status_code == 200
    with gateway(settings({"m": [a.member]}, admin_sha256=hashed(ADMIN, ""), host="0.0.0.0")) as it:
        assert it.ask("hi").status_code == 401
        assert it.ask("hi", headers=bearer(ADMIN)).status_code == 200


# --------------------------------------------------------------------------------------------------------- web pages


def test_a_page_of_another_origin_may_not_ask(it: Running) -> None:
    answer = it.ask("hi", headers={"origin": "https://evil.example"})

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert it.ask("hi", headers={"origin": it.url}).status_code == 200  # our own page


def test_a_name_that_was_made_to_mean_this_machine_is_refused(it: Running) -> None:
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]:80", "@"):
        assert requests.get(f"{it.url}/state", headers={"host": host}, timeout=5).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "127.1.2.3"):
        assert requests.get(f"{it.url}/state", headers={"host": host}, timeout=5).status_code == 200


def test_a_page_that_is_named_may_ask_and_read(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, cors_origins=["https://app.example"])) as it:
        mine = {"origin": "https://app.example"}
        preflight = requests.options(f"{it.url}/v1/chat/completions", headers=mine, timeout=5)

        assert preflight.status_code == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert it.ask("hi", headers=mine).headers["access-control-allow-origin"] == "https://app.example"
        streamed = it.ask("hi", stream=True, headers=mine)
        assert streamed.headers["access-control-allow-origin"] == "https://app.example"
        streamed.close()
        assert it.ask("hi", headers={"origin": "https://other.example"}).status_code == 403


# ------------------------------------------------------------------------------------------------------------ limits


def test_more_than_may_wait_are_sent_away_with_when_to_come_again(a: Fake) -> None:
    with gateway(settings({"m": [a.member]}, {"max_concurrency": 1, "queue": 1})) as it, ThreadPoolExecutor(2) as pool:
        first = pool.submit(it.ask, "slow 0.4")
        until(lambda: it.server.table.routes["m"].gate.active == 1)
        second = pool.submit(it.ask, "slow 0.1")
        until(lambda: len(it.server.admission.waiting) == 1)

        third = it.ask("hi")

        assert (third.status_code, third.headers["retry-after"]) == (429, "1")
        assert third.json()["error"]["code"] == "too_many_requests"
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_who_waits_too_long_is_sent_away(a: Fake) -> None:
    limits = {"max_concurrency": 1, "queue_timeout_s": 0.1}
    with gateway(settings({"m": [a.member]}, limits)) as it, ThreadPoolExecutor(1) as pool:
        first = pool.submit(it.ask, "slow 0.5")
        until(lambda: it.server.table.routes["m"].gate.active == 1)

        assert it.ask("hi").status_code == 429
        assert first.result().status_code == 200


def test_a_rule_sends_long_prompts_elsewhere(a: Fake, b: Fake) -> None:
    made = settings()
    made.routes = [route("m", [a.member, b.member], rules=[Rule(use=["b"], min_chars=100)])]
    with gateway(made) as it:
        assert it.ask("short").headers["x-rmlaunch-deployment"] == "a"
        assert it.ask("long" * 100).headers["x-rmlaunch-deployment"] == "b"


def test_a_request_is_held_while_its_deployment_is_started(a: Fake) -> None:
    machine = NoMachine(starts=True)
    made = settings({"m": [Member("lazy")]}, startable={"lazy": Startable(["engine=llamacpp"])})
    with gateway(made, machine) as it, ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(it.ask, "hi", "m"), pool.submit(it.ask, "hi", "lazy")]
        until(lambda: len(machine.started) >= 2)
        assert not waits[0].done()

        def arrive() -> None:
            replica = it.server.table.replica("lazy")
            replica.phase = "READY"
            replica.point_to(_upstream(a))
            it.server.look_again()

        it.do(arrive)

        assert [answer.result().headers["x-rmlaunch-deployment"] for answer in waits] == ["lazy", "lazy"]


def test_a_request_is_not_held_for_ever() -> None:
    made = settings({"m": [Member("lazy")]}, {"hold_s": 0.1}, startable={"lazy": Startable(["engine=llamacpp"])})
    with gateway(made, NoMachine(starts=True)) as it:
        assert it.ask("hi").status_code == 503


def _upstream(server: Fake) -> Upstream:
    return Upstream("127.0.0.1", server.port, False, "", OpenAI("theirs"), "theirs")


# ------------------------------------------------------------------------------------------------------- new settings


def test_new_settings_leave_what_is_on_its_way_alone(a: Fake, b: Fake) -> None:
    made = settings({"m": [a.member], "old": [a.member]})
    with gateway(made) as it, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(it.ask, "slow 0.3")
        until(lambda: it.server.table.routes["m"].gate.active == 1)
        changed = dataclasses.replace(made, routes=[route("m", [b.member]), route("new", [a.member])])
        it.do(lambda: it.server.use(changed, {}))

        assert it.ask("hi").json()["served_by"] == "b"
        assert it.ask("hi", model="new").status_code == 200
        assert it.ask("hi", model="old").status_code == 404
        assert waits.result().json()["served_by"] == "a"
        assert it.server.table.routes["m"].codes[200] == 2  # what was counted stays


# ----------------------------------------------------------------------------------------------- the official client


@pytest.fixture
def client(it: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0, timeout=10) as made:
        yield made


def test_the_official_client_chats_and_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    pieces = list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))

    assert (whole.choices[0].message.content, whole.usage and whole.usage.total_tokens) == ("yes", 4)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "012"
    assert [model.id for model in client.models.list()] == ["m", "n"]


def test_the_official_client_embeds(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="m", input="a").data[0].embedding == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("status 400", openai.BadRequestError),
        ("status 404", openai.NotFoundError),
        ("status 422", openai.UnprocessableEntityError),
        ("status 429", openai.RateLimitError),
        ("status 500", openai.InternalServerError),
    ],
)
def test_the_official_client_knows_the_errors(
    client: openai.OpenAI, text: str, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind, match="as asked by a"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])


def test_the_official_client_sees_a_stream_break(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="it closed the connection before its answer was whole"):
        for _ in client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "close mid-stream"}], stream=True
        ):
            pass


# ------------------------------------------------------------------------------------------------------------ config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gateway.host=0.0.0.0"], r"gateway\.host='0\.0\.0\.0' can be reached from other machines, and needs a key"),
        (["++gateway.routes.m=a"], r"write gateway\.routes\.m=\[a\]"),
        (["++gateway.routes.m=[]"], r"gateway\.routes\.m has no deployments"),
        (["++gateway.routes.m=[a,a]"], "names a deployment twice"),
        (
            ["++gateway.routes.m.deployments=[a]", "++gateway.routes.m.strategy=fastest"],
            "use priority, round_robin, least",
        ),
        (["++gateway.routes.m.deployments=[a]", "++gateway.routes.m.retrys=1"], "did you mean 'retries'"),
        (["++gateway.routes.m=['ftp://x']"], "write it as https://host/v1"),
        (
            ["++gateway.routes.m=['http://h/v1']", "++gateway.routes.n=[{url: 'http://h/v2'}]"],
            "two servers are called 'h:80'",
        ),
        (["++gateway.keys.bob=short"], "has 5 characters; at least 16"),
        (["++gateway.keys.bob={sha256: abc}"], "is no SHA-256"),
        (["++gateway.keys.a=0123456789abcdef", "++gateway.keys.b=0123456789abcdef"], "two of them are the same key"),
        (["++gateway.deployments.big={launch: ['name=x']}"], "its name is big"),
        (["gateway.port=70000"], "is no port"),
        (["gateway.ports=1"], r"unknown key 'gateway\.ports'; did you mean 'gateway\.port'"),
    ],
)
def test_a_wrong_config_is_told_what_to_change(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(words, None)


def test_an_address_of_the_network_is_fine_with_a_key() -> None:
    made = composed(["gateway.host=0.0.0.0", "++gateway.keys.bob=0123456789abcdef"], None)

    assert made.keys == [Key("bob", hashed("0123456789abcdef", ""))]
    assert "0123456789abcdef" not in json.dumps([vars(key) for key in made.keys])


def test_keys_are_hashes_before_they_are_written_down() -> None:
    words = ["++gateway.keys.bob=0123456789abcdef", "gateway.admin_key='0123456789abcdef'", "gateway.port=1",
             "++gateway.keys.al.key=${oc.env:X}"]  # fmt: skip

    kept = without_keys(words)

    digest = hashed("0123456789abcdef", "")
    assert kept == [f"++gateway.keys.bob=sha256:{digest}", f"gateway.admin_key=sha256:{digest}", *words[2:]]
    assert composed(kept[:3], None).keys == composed(words[:3], None).keys
    assert composed(kept[:3], None).admin_sha256 == digest


@pytest.mark.parametrize("word", ["gateway.keys={bob: 0123456789abcdef}", "gateway.keys.bob={key: 0123456789abcdef}"])
def test_a_key_that_would_be_kept_as_it_is_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"write gateway\.keys\.NAME=KEY"):
        without_keys([f"++{word}"])


def test_a_key_that_looks_like_a_variable_is_hashed_all_the_same() -> None:
    (kept,) = without_keys(["++gateway.keys.bob='$ecret-0123456789abcdef'"])

    assert kept == f"++gateway.keys.bob=sha256:{hashed('$ecret-0123456789abcdef', '')}"


@pytest.mark.parametrize("word", ["gateway.defaults_of_routes.queue=5", "gateway=mine"])
def test_a_key_that_was_renamed_is_refused_with_its_new_name(word: str, tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    mine = "defaults: [default, _self_]\ndefaults_of_routes: {queue: 5}\n"
    (tmp_path / "gateway" / "mine.yaml").write_text(mine)

    with pytest.raises(ConfigError) as refused:
        composed([word], str(tmp_path))

    assert str(refused.value) == "gateway.defaults_of_routes is called gateway.route_defaults now"


def test_settings_that_would_open_a_port_to_everybody_are_not_taken_on(tmp_path: Path, a: Fake) -> None:
    safe = settings({"m": [a.member]}, host="0.0.0.0", keys=[Key("bob", hashed(BOB, ""))])
    file = tmp_path / "settings.json"
    file.write_text(ComposedRequest([], None, safe, marks(None)).dumps())
    taken: list[Settings] = []
    reloader = Reloader(file, taken.append)

    opened = dataclasses.replace(safe, host="127.0.0.1", keys=[])
    write_text(file, ComposedRequest([], None, opened, marks(None)).dumps())
    reloader.look()

    assert taken == []
    assert reloader.settings == safe
    write_text(file, ComposedRequest([], None, dataclasses.replace(safe, drain_s=1.0), marks(None)).dumps())
    reloader.look()
    assert [one.drain_s for one in taken] == [1.0]
