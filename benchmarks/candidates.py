"""The same proxy on each candidate for the gateway's server and client: it parses the body, sends it on, and answers.

    python candidates.py KIND PORT UPSTREAM_PORT

Each is as short as its libraries allow. `benchmarks/gateway_servers.py` runs this in an environment that has the
candidates alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httptools

Ask = Callable[[bytes], Awaitable[bytes]]

PATH = "/v1/chat/completions"


# ---------------------------------------------------------------------------------------------------------- clients


async def aiohttp_client(upstream: int) -> Ask:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url, headers = f"http://127.0.0.1:{upstream}{PATH}", {"content-type": "application/json"}

    async def ask(body: bytes) -> bytes:
        async with session.post(url, data=body, headers=headers) as answer:
            return cast(bytes, await answer.read())

    return ask


async def httpx_client(upstream: int) -> Ask:
    import httpx

    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=64))
    url, headers = f"http://127.0.0.1:{upstream}{PATH}", {"content-type": "application/json"}

    async def ask(body: bytes) -> bytes:
        return cast(bytes, (await client.post(url, content=body, headers=headers)).content)

    return ask


# ---------------------------------------------------------------------------------------------------------- servers


class Asgi:
    def __init__(self, client: Callable[[int], Awaitable[Ask]], upstream: int) -> None:
        self._client = client
        self._upstream = upstream
        self._ask: Ask | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if self._ask is None:
            self._ask = await self._client(self._upstream)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        assert json.loads(body)["model"]
        answer = await self._ask(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def uvicorn_server(client: Callable[[int], Awaitable[Ask]], port: int, upstream: int) -> None:
    import uvicorn

    uvicorn.run(Asgi(client, upstream), host="127.0.0.1", port=port, log_level="error", access_log=False,
                loop="uvloop", http="httptools")  # fmt: skip


def granian_server(port: int, upstream: int) -> None:
    from granian import Granian

    os.environ["UPSTREAM"] = str(upstream)
    Granian(f"{__file__}:granian_app", address="127.0.0.1", port=port, interface="asgi", workers=1, loop="uvloop",
            log_access=False, factory=True).serve()  # fmt: skip


def granian_app() -> Asgi:
    return Asgi(aiohttp_client, int(os.environ["UPSTREAM"]))


async def aiohttp_server(port: int, upstream: int) -> None:
    from aiohttp import web

    ask = await aiohttp_client(upstream)

    async def answer(request: Any) -> Any:
        body = await request.read()
        assert json.loads(body)["model"]
        return web.Response(body=await ask(body), content_type="application/json")

    app = web.Application()
    app.router.add_post(PATH, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


class _Messages(asyncio.Protocol):
    """asyncio's protocols with httptools: a connection, and the body of the message that comes on it."""

    def __init__(self, parser: Callable[[object], Any]) -> None:
        self.transport: Any = None
        self.parser = parser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        self.came(body)

    def came(self, body: bytes) -> None:
        raise NotImplementedError


class _Server(_Messages):
    """To the server behind; `idle` are those that nobody uses."""

    def __init__(self, idle: list[_Server]) -> None:
        super().__init__(httptools.HttpResponseParser)
        self._idle = idle
        self.client: _Client | None = None

    def came(self, body: bytes) -> None:
        client, self.client = self.client, None
        self._idle.append(self)
        if client is not None:
            client.transport.write(
                b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (self.parser.get_status_code(), len(body), body)
            )


class _Client(_Messages):
    def __init__(self, upstream: int, idle: list[_Server]) -> None:
        super().__init__(httptools.HttpRequestParser)
        self._upstream = upstream
        self._idle = idle
        self._connecting: asyncio.Future[None] | None = None

    def came(self, body: bytes) -> None:
        assert json.loads(body)["model"]
        request = (
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (PATH.encode(), len(body), body)
        )
        if self._idle:
            self._use(self._idle.pop(), request)
        else:
            self._connecting = asyncio.ensure_future(self._connect(request))

    async def _connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(lambda: _Server(self._idle), "127.0.0.1", self._upstream)
        self._use(server, request)

    def _use(self, server: _Server, request: bytes) -> None:
        server.client = self
        server.transport.write(request)


async def protocols(port: int, upstream: int) -> None:
    idle: list[_Server] = []
    loop = asyncio.get_running_loop()
    await (await loop.create_server(lambda: _Client(upstream, idle), "127.0.0.1", port)).serve_forever()


def main(kind: str, port: int, upstream: int) -> None:
    import uvloop

    match kind:
        case "protocols":
            uvloop.run(protocols(port, upstream))
        case "aiohttp":
            uvloop.run(aiohttp_server(port, upstream))
        case "granian":
            granian_server(port, upstream)
        case "uvicorn":
            uvicorn_server(aiohttp_client, port, upstream)
        case "uvicorn-httpx":
            uvicorn_server(httpx_client, port, upstream)
        case _:
            sys.exit(f"no candidate {kind!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
