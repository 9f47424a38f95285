"""A server with OpenAI's API that answers at once, and misbehaves where the prompt tells it to.

    python openai_server.py --port 9000 --name a

What is asked for stands in the text of the request: `die`, `die mid-stream`, `half`, `hang`, `hang mid-stream`,
`status 503`, `slow 0.1` (seconds between pieces), `pieces 200`, `big 1000000` (bytes), `no done`, `garbage`, `close`.
GET /asked tells what was asked so far, and which requests were given up by their clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
from typing import Any


class Server:
    def __init__(self, name: str, deaf: bool) -> None:
        self._name = name
        self._deaf = deaf
        self._asked: list[dict[str, Any]] = []
        self._left = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *headers = head.strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if line.startswith("GET /asked"):
            writer.write(_json(200, {"asked": self._asked, "left": self._left}))
            return True
        if line.startswith("GET"):
            writer.write(_json(200, {"status": "ok"}))
            return True
        asked = json.loads(body)
        self._asked.append({"path": line.split()[1], "headers": fields, "body": asked, "raw": body.decode()})
        try:
            return await self._answer(asked, reader, writer, line.split()[1])
        except ConnectionError:
            self._left += 1
            raise

    async def _answer(
        self, asked: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str
    ) -> bool:
        told = "" if self._deaf else json.dumps(asked.get("messages") or asked.get("prompt") or asked.get("input"))
        if "die mid" not in told and re.search(r"\bdie\b", told):
            os._exit(1)
        if "garbage" in told:
            writer.write(b"this is no HTTP\r\n\r\n")
            return False
        if "close" in told:
            return False
        if "hang" in told and "mid" not in told:
            await self._until_left(reader)
        if found := re.search(r"status (\d+)", told):
            error = {"error": {"message": f"as asked by {self._name}", "code": "as_asked"}}
            writer.write(_json(int(found[1]), error, "retry-after: 7\r\n" if found[1] in ("429", "503") else ""))
            return True
        pause = float(found[1]) if (found := re.search(r"slow ([\d.]+)", told)) else 0.0
        if asked.get("stream"):
            return await self._stream(asked, told, reader, writer, pause)
        await asyncio.sleep(pause)
        answer: dict[str, Any] = {
            "id": "1", "object": "chat.completion", "model": asked["model"], "served_by": self._name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }  # fmt: skip
        if path.endswith("/embeddings"):
            answer = {"object": "list", "model": asked["model"], "data": [{"index": 0, "embedding": [0.5, 0.25]}]}
        if found := re.search(r"big (\d+)", told):
            answer["choices"][0]["message"]["content"] = "x" * int(found[1])
        whole = _json(200, answer)
        if "half" in told:
            writer.write(whole[: len(whole) - 10])
            return False
        writer.write(whole)
        return True

    async def _stream(
        self, asked: dict[str, Any], told: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float
    ) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        found = re.search(r"pieces (\d+)", told)
        pieces = int(found[1]) if found else 3
        size = int(found[1]) if (found := re.search(r"big (\d+)", told)) else 1
        gone = asyncio.ensure_future(self._until_left(reader))
        for number in range(pieces):
            event = {"model": asked["model"], "choices": [{"index": 0, "delta": {"content": str(number % 10) * size}}]}
            writer.write(_chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))
            await writer.drain()
            if number == 1 and "mid-stream" in told:
                if "hang" in told:
                    await gone
                writer.write(_chunk(b'data: {"half an ev'))
                await writer.drain()
                if "die" in told:
                    os._exit(1)
                return False
            await asyncio.sleep(pause)
            if gone.done():
                gone.result()
        gone.cancel()
        await asyncio.wait([gone])
        last = {"model": asked["model"], "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        if "no done" not in told:
            writer.write(_chunk(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        return True

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        """Until the client has closed the connection."""
        if await reader.read(1) == b"":
            raise ConnectionError("the client is gone")


def _json(status: int, data: object, extra: str = "") -> bytes:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--deaf", action="store_true", help="do not do what prompts say: they are anybody's")
    options = parser.parse_args()
    server = await asyncio.start_server(
        Server(options.name, options.deaf).connected, "127.0.0.1", options.port, limit=1 << 26
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
