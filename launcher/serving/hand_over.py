"""Hand a plan over to a supervisor: claim its name and ports, prepare what it needs, and give the orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.base import LaunchPlan
from launcher import plan_json, registry
from launcher.config import declared_device
from launcher.config.schema import SuperviseConf
from launcher.deployments.ledger import Ledger
from launcher.deployments.spawn import Spawned
from launcher.deployments.supervised import Supervised
from launcher.supervise.lifecycle import Policy
from launcher.supervise.protocol import News, Orders


def hand_over(
    spawned: Spawned,
    ledger: Ledger,
    choose: Callable[[], tuple[LaunchPlan, tuple[int, ...]]],
    prepare: Callable[[LaunchPlan], None],
    supervise: SuperviseConf,
    *,
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    detached: bool = False,
    on_news: Callable[[News], None] = lambda _: None,
) -> Supervised:
    """Return the supervisor of the plan that `choose` makes; it has its orders by then.

    `choose` is called while nobody else chooses a name or a port, and returns the plan and its ports. `prepare` is
    called once they are claimed. If either fails, the claim is released, and `spawned` stays the caller's.
    """
    with ledger.exclusive():
        plan, ports = choose()
        claim = ledger.claim(plan.name, ports, plan_json.public(plan))
    try:
        prepare(plan)
        orders = orders_for(plan, claim.folder, supervise, api_key, options, detached=detached)
        return Supervised(spawned, orders, claim, on_news)
    except BaseException:
        claim.release()
        raise


def orders_for(
    plan: LaunchPlan,
    folder: Path,
    supervise: SuperviseConf,
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    detached: bool = False,
) -> Orders:
    """Return the orders to run `plan` in the deployment's `folder`; `options` are the engine's config keys."""
    return Orders(
        plan=plan,
        runtime=registry.import_path("runtime", plan.runtime),
        device=declared_device.import_path(plan.device.kind),
        folder=str(folder),
        policy=Policy(supervise.max_crashes, supervise.backoff_s, supervise.backoff_max_s),
        stop_grace_s=supervise.stop_grace_s,
        stable_s=supervise.stable_s,
        log_bytes=supervise.log_mib << 20,
        api_key=api_key,
        options=options or {},
        detached=detached,
        metrics_port=supervise.metrics_port,
    )
