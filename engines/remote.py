"""A server with OpenAI's API that somebody else runs: nothing to start, only to check, to watch and to ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from engines.base import (
    LOOPBACK,
    MISSING,
    Capabilities,
    Chunk,
    Dialect,
    Endpoint,
    Endpoints,
    Engine,
    HttpCheck,
    LaunchPlan,
    OpenAI,
    PlanError,
    Probes,
    Request,
    ServeSpec,
    Target,
    Vector,
)
from engines.openai_http import OpenAIClient, renamed

#: the server is running already, so there is no load to wait for, only a restart by its owner
_STARTUP_TIMEOUT_S = 30.0


@dataclass
class RemoteOptions:
    """The config keys of engine=remote."""

    url: str = MISSING  #: URL of the API: the part before /chat/completions
    model_name: str | None = None  #: the server's name for the model; None is model.id
    insecure: bool = MISSING  #: send the key over plain http to another machine
    list_models: bool = MISSING  #: check that the server has the model
    fields: dict[str, Any] = field(default_factory=dict)  #: fields of requests → this server's names; null leaves out


class Remote(Engine):
    """The engine that starts nothing, and speaks to a server elsewhere."""

    name: ClassVar[str] = "remote"
    capabilities: ClassVar[Capabilities] = Capabilities(
        formats={"remote": {"generate": ("url",), "embed": ("url",)}},
        api_key=True,
        runtimes=("none",),
    )
    ports: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type] = RemoteOptions

    def __init__(self) -> None:
        self._client = OpenAIClient(prefix="", proxies=True)

    def plan(self, spec: ServeSpec) -> LaunchPlan:
        """Plan the probes alone: there is no argv. Refuses to send a key unencrypted to another machine."""
        endpoint = _endpoint(spec.options["url"])
        foreign_in_clear = endpoint.scheme == "http" and endpoint.host not in LOOPBACK
        if spec.api_key and foreign_in_clear and not spec.options["insecure"]:
            raise PlanError(
                f"engine.url={spec.options['url']!r} would send the key unencrypted to another machine; use https, "
                "leave the key out with engine.api_key_env=null, or accept it with engine.insecure=true"
            )
        for name, new in spec.options["fields"].items():
            if new is not None and not isinstance(new, str):
                raise PlanError(f"engine.fields.{name}={new!r} is no name; give the server's name of it, or null")
        return LaunchPlan.of(spec, argv=(), endpoints=Endpoints(endpoint), probes=_probes(spec))

    def infer(self, target: Target, request: Request) -> Iterator[Chunk | Vector]:
        """Ask through OpenAI's API, with the server's own names for the model and for fields."""
        name = target.options.get("model_name") or target.model_id
        named = dataclasses.replace(target, model_id=name)
        return self._client.infer(named, request, target.options.get("fields"))

    def dialect(self, plan: LaunchPlan, options: Mapping[str, Any]) -> Dialect:
        """Return OpenAI's dialect with the server's own names for the model and for fields."""
        return OpenAI(options.get("model_name") or plan.model.id, prefix="", fields=options.get("fields"))

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


def _endpoint(url: str) -> Endpoint:
    """Return the address in `url`. Raises `PlanError` if it is not the base of an API."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise PlanError(f"engine.url={url!r} is no URL: {exc}") from exc
    if parts.username is not None or parts.password is not None:
        raise PlanError("engine.url holds a user or a password; put the key into the variable of engine.api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise PlanError(f"engine.url={url!r} is not understood; write it as https://host/v1 or http://host:8000/v1")
    path = parts.path.rstrip("/")
    if path.endswith(("/completions", "/embeddings", "/models")):
        raise PlanError(f"engine.url={url!r} names one call of the API; give what stands before it, such as /v1")
    return Endpoint(parts.hostname, port or {"http": 80, "https": 443}[parts.scheme], parts.scheme, path)


def _probes(spec: ServeSpec) -> Probes:
    name, chat = spec.options["model_name"] or spec.model.id, spec.model.chat
    body: Mapping[str, Any] = {"model": name, "max_tokens": 1, "temperature": 0}
    if spec.model.task == "embed":
        canary = HttpCheck("/embeddings", "POST", {"model": name, "input": "a"}, expect="data.0.embedding", final=True)
    else:
        asked = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
        path = "/chat/completions" if chat else "/completions"
        body = renamed({**body, **asked}, spec.options["fields"])
        # A model that reasons may spend the one token on that, so the text may be empty.
        canary = HttpCheck(path, "POST", body, expect="choices", final=True)
    settings = dataclasses.replace(
        spec.probes, startup_timeout_s=min(spec.probes.startup_timeout_s, _STARTUP_TIMEOUT_S)
    )
    if not spec.options["list_models"]:  # without it, only a request that costs a token tells whether it is well
        return Probes(startup=canary, readiness=canary, liveness=canary, settings=settings)
    models = HttpCheck("/models", expect="data.*.id", among=name, final=True)
    return Probes(startup=models, readiness=canary, liveness=HttpCheck("/models"), settings=settings)
