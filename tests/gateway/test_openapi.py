"""Requests of every kind that our own description of the API allows, and many that it does not: Schemathesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from launcher.gateway.settings import hashed
from launcher.paths import shipped
from tests.gateway.harness import Running, fake, gateway
from tests.gateway.harness import settings as gateway_settings

ADMIN = "the-admins-own-long-key"
SCHEMA = schemathesis.openapi.from_dict(json.loads((shipped("templates") / "gateway" / "openapi.json").read_text()))

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def it() -> Iterator[Running]:
    with (
        fake("deaf", None, "--deaf") as server,  # what is made up may happen to be what another one obeys
        gateway(gateway_settings({"m": [server.member]}, admin_sha256=hashed(ADMIN, ""))) as running,
    ):
        yield running


@pytest.mark.parametrize("model", [None, "m"])
@SCHEMA.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(it: Running, case: schemathesis.Case[Any], model: str | None) -> None:
    if model and isinstance(case.body, dict):
        case.body["model"] = model  # else it is one that there is only by chance
    case.call_and_validate(
        base_url=it.url,
        headers={"authorization": f"Bearer {ADMIN}"},
        timeout=10,
        checks=[
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ],
    )
