"""A server that somebody else runs: its plan as whole values, and a real one behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from engines.base import (
    Device,
    Endpoint,
    Endpoints,
    Environment,
    ExitedBeforeReady,
    HttpCheck,
    Model,
    PlanError,
    Probes,
    ProbeSettings,
    ReadyTimeout,
    ServeSpec,
)
from engines.remote import Remote
from launcher import launch
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase
from tests.supervision import free_port, wait_for

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def spec(url: str = "https://api.test/v1", *, model: Model | None = None, **changes: Any) -> ServeSpec:
    options: dict[str, Any] = {"url": url, "model_name": None, "insecure": False, "list_models": True, "fields": {}}
    own = {key: changes.pop(key) for key in tuple(changes) if key in options}
    values: dict[str, Any] = {
        "name": "r",
        "engine": "remote",
        "device": Device("remote"),
        "model": model or Model("m", "url", "url", "url"),
        "runtime": "none",
        "environment": Environment("r", "/env", "3.11", managed=False),
        "bind": "127.0.0.1",
        "ports": (),
        "run_dir": "/run",
        "options": {**options, **own},
    }
    return ServeSpec(**{**values, **changes})


# ----------------------------------------------------------------------------------------------------------- plans


def test_nothing_is_started_and_everything_is_checked() -> None:
    plan = Remote().plan(spec("https://api.test/v1/", api_key="sesame"))

    assert (plan.argv, plan.env, plan.files, plan.builds) == ((), {}, {}, ())
    assert plan.endpoints == Endpoints(Endpoint("api.test", 443, "https", "/v1"))
    assert plan.endpoints.http.url == "https://api.test:443/v1"
    body = {"model": "m", "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "a"}]}
    assert plan.probes == Probes(
        startup=HttpCheck("/models", expect="data.*.id", among="m", final=True),
        readiness=HttpCheck("/chat/completions", "POST", body, expect="choices", final=True),
        liveness=HttpCheck("/models"),
        settings=ProbeSettings(startup_timeout_s=30.0),
    )
    assert "sesame" not in repr(plan)


def test_a_shorter_wait_is_the_users() -> None:
    probes = ProbeSettings(startup_timeout_s=5, liveness_period_s=1)

    assert Remote().plan(spec(probes=probes)).probes.settings == probes


def test_the_servers_own_names_are_used_in_the_checks_too() -> None:
    plan = Remote().plan(
        spec(model_name="org/m:free", fields={"max_tokens": "max_completion_tokens", "temperature": None})
    )

    assert plan.model.id == "m"
    assert plan.probes.startup.among == "org/m:free"
    assert plan.probes.readiness.body == {
        "model": "org/m:free",
        "max_completion_tokens": 1,
        "messages": [{"role": "user", "content": "a"}],
    }


def test_a_model_without_chat_is_proved_by_a_text_and_one_for_embeddings_by_an_embedding() -> None:
    text = Remote().plan(spec(model=Model("m", "url", "url", "url", chat=False))).probes.readiness
    embed = Remote().plan(spec(model=Model("m", "url", "url", "url", task="embed"))).probes.readiness

    body = {"model": "m", "max_tokens": 1, "temperature": 0, "prompt": "a"}
    assert text == HttpCheck("/completions", "POST", body, expect="choices", final=True)
    assert embed == HttpCheck(
        "/embeddings", "POST", {"model": "m", "input": "a"}, expect="data.0.embedding", final=True
    )


def test_a_server_without_a_list_of_models_is_asked_for_a_token_instead() -> None:
    probes = Remote().plan(spec(list_models=False)).probes

    assert probes.startup == probes.readiness == probes.liveness
    assert probes.startup.path == "/chat/completions"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:8000/v1", Endpoint("127.0.0.1", 8000, "http", "/v1")),
        ("http://[::1]:8000", Endpoint("::1", 8000)),
        ("https://api.test/openai/deployments/x", Endpoint("api.test", 443, "https", "/openai/deployments/x")),
        ("http://localhost/v1", Endpoint("localhost", 80, "http", "/v1")),
    ],
)
def test_urls_are_read(url: str, endpoint: Endpoint) -> None:
    assert Remote().plan(spec(url, api_key="k")).endpoints.http == endpoint


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("api.test/v1", "engine.url='api.test/v1' is not understood; write it as https://host/v1"),
        ("ftp://api.test/v1", "is not understood"),
        ("https://api.test/v1?key=1", "is not understood"),
        ("https:///v1", "is not understood"),
        ("https://api.test:http/v1", "is no URL"),
        ("https://me:secret@api.test/v1", "^engine.url holds a user or a password; put the key"),
        ("https://api.test/v1/chat/completions", "names one call of the API"),
    ],
)
def test_what_is_no_base_of_an_api_is_refused(url: str, words: str) -> None:
    with pytest.raises(PlanError, match=words) as info:
        Remote().plan(spec(url))

    assert "secret" not in str(info.value)


def test_a_key_is_not_sent_in_clear_to_another_machine() -> None:
    with pytest.raises(PlanError, match=r"would send the key unencrypted .* engine.insecure=true"):
        Remote().plan(spec("http://10.0.0.1/v1", api_key="k"))

    for allowed in (spec("http://10.0.0.1/v1"), spec("http://10.0.0.1/v1", api_key="k", insecure=True)):
        assert Remote().plan(allowed).endpoints.http.host == "10.0.0.1"


def test_a_new_name_of_a_field_must_be_a_name() -> None:
    with pytest.raises(PlanError, match=r"engine.fields.max_tokens=3 is no name"):
        Remote().plan(spec(fields={"max_tokens": 3}))


# ----------------------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingEngine]:
    """A llama.cpp that demands a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLAUNCH_STATE", str(tmp_path_factory.mktemp("state")))
        with launch("engine=llamacpp", "device=cpu", "model=smollm2", "api_key=sesame") as serving:
            yield serving


def words(upstream: ServingEngine, *more: str) -> tuple[str, ...]:
    url = f"{upstream.plan.endpoints.http.url}/v1"
    return ("engine=remote", f"engine.url={url}", "model=remote", "model.id=smollm2", *more)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_it_answers_as_the_server_itself_and_leaves_it_running(
    upstream: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    with launch(*words(upstream, "engine.api_key_env=MY_KEY")) as remote:
        assert remote.plan.device.kind == "remote"
        assert remote.health_check()
        assert "Paris" in remote.infer(QUESTION, max_tokens=16)
        assert remote.infer(QUESTION, max_tokens=16) == upstream.infer(QUESTION, max_tokens=16)
        pieces = list(remote.stream("One, two, three,", max_tokens=6))
        assert "".join(pieces) == upstream.infer("One, two, three,", max_tokens=6)
    stopped = remote.stop()

    assert stopped is not None
    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert upstream.infer("One, two,", max_tokens=1)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_embeddings_come_through() -> None:
    with (
        launch("engine=llamacpp", "device=cpu", "model=smollm2", "model.task=embed") as server,
        launch(*words(server, "model.task=embed")) as remote,
    ):
        assert (remote.embed(["a cat", "a dog"]) == server.embed(["a cat", "a dog"])).all()


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("engine.api_key_env=null",), "401 from /models.*Invalid API Key"),
        (("api_key=wrong",), "401 from /models.*Invalid API Key"),
        (("api_key=sesame", "model.id=gpt-9"), "has 'smollm2' .* and not 'gpt-9'"),
    ],
    ids=["no key", "wrong key", "wrong model"],
)
def test_what_will_not_change_by_waiting_is_told_at_once(
    upstream: ServingEngine, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExitedBeforeReady, match=message):
        launch(*words(upstream, *more)).start()


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_server_that_is_gone_is_degraded_and_comes_back_by_itself() -> None:
    port = free_port()
    quick = ("supervise.liveness_period_s=0.1", "supervise.backoff_s=0.1", "supervise.startup_timeout_s=60")
    with (
        launch("engine=llamacpp", "device=cpu", "model=smollm2", f"port={port}") as server,
        launch(*words(server, *quick)) as remote,
    ):
        pid = server.news.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it neither answers nor ends
        wait_for(lambda: remote.news.phase is Phase.DEGRADED, timeout_s=30)
        assert "TimeoutError from /models" in remote.news.reason
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: remote.news.phase is Phase.READY, timeout_s=60)
        assert remote.infer("One, two,", max_tokens=1)


@pytest.mark.real
def test_nobody_there_is_told_in_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ReadyTimeout, match=f"nothing listens on {url[7:-3]}"):
        launch(
            "engine=remote", f"engine.url={url}", "model=remote", "model.id=m", "supervise.startup_timeout_s=0.5"
        ).start()
