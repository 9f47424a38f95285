"""A plan that is handed over is claimed first, and the claim is given back where anything fails after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import LaunchPlan, PrepareError
from launcher.deployments.ledger import Ledger
from launcher.deployments.spawn import Spawned
from launcher.prepare.steps import make_run_folder
from launcher.serving.hand_over import hand_over
from launcher.supervise.lifecycle import Phase
from tests.supervision import fake_plan, settings


def test_a_plan_that_cannot_be_prepared_leaves_its_name_and_its_folder_free(tmp_path: Path) -> None:
    ledger, spawned = Ledger(tmp_path), Spawned()
    plan = fake_plan(tmp_path)
    held: list[bool] = []

    def prepare(_: LaunchPlan) -> None:
        held.append(ledger.is_live("fake"))
        (ledger.deployments / "fake" / "run").mkdir()
        raise PrepareError("no room")

    try:
        with pytest.raises(PrepareError, match="no room"):
            hand_over(spawned, ledger, lambda: (plan, ()), prepare, settings(1, 1.0))
    finally:
        spawned.close()

    assert held == [True]
    assert not ledger.is_live("fake")
    assert not (ledger.deployments / "fake" / "run").exists()


def test_what_is_handed_over_is_recorded_and_serves(tmp_path: Path) -> None:
    ledger, said = Ledger(tmp_path), list[Phase]()
    plan = fake_plan(tmp_path)

    deployment = hand_over(
        Spawned(), ledger, lambda: (plan, (plan.endpoints.http.port,)), make_run_folder, settings(1, 1.0),
        on_news=lambda news: said.append(news.phase),
    )  # fmt: skip
    try:
        assert deployment.wait_ready().phase is Phase.READY
        assert ledger.plan("fake")["name"] == "fake"
    finally:
        deployment.close()

    assert Phase.READY in said
    assert not ledger.is_live("fake")
