"""Ask deployments that somebody else has started."""

from __future__ import annotations

from engines.base import LaunchPlan, RequestError, Target
from launcher import registry
from launcher.config.gateway import ENGINE as GATEWAY
from launcher.deployments.records import Deployment
from launcher.serving.client import Client, Connected
from launcher.supervise import protocol


class Attached(Client):
    """A client of a deployment that somebody else has started; the deployment goes on when this is closed."""

    def __init__(self, deployment: Deployment) -> None:
        with deployment.connect() as connection:
            given = connection.learn("target", protocol.Target)
        plan = given.plan
        if plan.engine == GATEWAY:
            raise RequestError(
                f"{plan.name} is the gateway; ask it as OpenAI's server, at {plan.endpoints.http.url}/v1"
            )
        target = Target(plan.endpoints, plan.model.id, given.options, given.api_key, key=plan.key)
        self._asked = Connected(registry.engine(plan.engine), plan, target)

    @property
    def plan(self) -> LaunchPlan:
        """The plan that the deployment was started with."""
        return self._asked.plan

    def close(self) -> None:
        """Close the connections to the server; the deployment goes on."""
        self._asked.engine.close()

    def _connected(self) -> Connected:
        return self._asked
