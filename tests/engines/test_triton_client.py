"""Tensors on the wire, byte by byte, and what a server that fails becomes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from engines.base import EmbedRequest, Endpoint, Endpoints, InferenceError, Request, Target, TensorRequest, Vector
from engines.triton_client import TritonClient

LENGTH = "Inference-Header-Content-Length"


def packed(outputs: list[dict[str, Any]], *bodies: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of an answer with binary tensors."""
    sized = [{**output, "parameters": {"binary_data_size": len(body)}}
             for output, body in zip(outputs, bodies, strict=True)]  # fmt: skip
    header = json.dumps({"model_name": "m", "outputs": sized}).encode()
    return {LENGTH: str(len(header))}, b"".join((header, *bodies))


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[Target, list[tuple[str, bytes]]]]:
    """A server that gives the same answer to everything, and what it was asked: the JSON and the bytes behind it."""
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            end = int(self.headers[LENGTH])
            asked.append((f"{self.path} {content[:end].decode()}", content[end:]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = Endpoint("127.0.0.1", server.server_address[1])
    try:
        yield Target(Endpoints(endpoint), "m", {"protocol": "http"}, timeout_s=5), asked
    finally:
        server.shutdown()
        server.server_close()


def ask(target: Target, request: Request) -> list[Any]:
    client = TritonClient()
    try:
        return list(client.infer(target, request))
    finally:
        client.close()


def test_tensors_go_over_http_as_bytes_behind_a_json_header() -> None:
    inputs = {"h": np.array([[1, 2]], "float16"), "b": np.array([True, False])}
    answer = packed(
        [
            {"name": "x", "datatype": "INT32", "shape": [2, 1]},
            {"name": "y", "datatype": "FP64", "shape": [0]},
            {"name": "z", "datatype": "UINT8", "shape": [3]},
        ],
        b"\x01\0\0\0\xff\xff\xff\xff",
        b"",
        b"\x07\x08\x09",
    )
    with answering(200, *answer) as (target, asked):
        (tensors,) = ask(target, TensorRequest(inputs))

    header = {
        "inputs": [
            {"name": "h", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}},
            {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
        ],
        "parameters": {"binary_data_output": True},
    }
    assert asked == [(f"/v2/models/m/infer {json.dumps(header)}", b"\x00\x3c\x00\x40\x01\x00")]
    assert {name: (array.dtype.name, array.tolist()) for name, array in tensors.values.items()} == {
        "x": ("int32", [[1], [-1]]),
        "y": ("float64", []),
        "z": ("uint8", [7, 8, 9]),
    }


def test_texts_to_embed_stand_behind_their_lengths() -> None:
    rows = np.array([[1, 0.5], [0, -1]], "float32")
    answer = packed([{"name": "embedding", "datatype": "FP32", "shape": [2, 2]}], rows.tobytes())
    with answering(200, *answer) as (target, asked):
        vectors = ask(target, EmbedRequest(("é", "")))

    assert asked[0][1] == b"\x02\0\0\0\xc3\xa9\0\0\0\0"
    assert vectors == [Vector((1.0, 0.5)), Vector((0.0, -1.0))]


def test_a_refusal_is_told_in_the_servers_words() -> None:
    with (
        answering(400, {}, b'{"error":"unexpected shape for input"}') as (target, _),
        pytest.raises(InferenceError, match=r"^unexpected shape for input$"),
    ):
        ask(target, TensorRequest({"x": np.zeros(1)}))


def test_an_output_that_no_array_can_hold_is_an_error() -> None:
    answer = packed([{"name": "words", "datatype": "BYTES", "shape": [1]}], b"\x01\0\0\0a")
    with answering(200, *answer) as (target, _), pytest.raises(InferenceError, match="output 'words' is BYTES"):
        ask(target, TensorRequest({"x": np.zeros(1)}))


@pytest.mark.parametrize("dtype", ["datetime64[s]", ">f4", "complex64", "S3"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_array_that_no_tensor_can_hold_is_not_sent(protocol: str, dtype: str) -> None:
    nobody = Endpoint("127.0.0.1", 9)
    target = Target(Endpoints(nobody, nobody), "m", {"protocol": protocol}, timeout_s=5)
    with pytest.raises(InferenceError, match=r"^input 'x' is .*, which Triton's tensors cannot carry$"):
        ask(target, TensorRequest({"x": np.zeros(1, dtype)}))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_half_a_character_is_not_sent(protocol: str) -> None:
    nobody = Endpoint("127.0.0.1", 9)
    target = Target(Endpoints(nobody, nobody), "m", {"protocol": protocol}, timeout_s=5)
    with pytest.raises(InferenceError, match=r"half a character at 3: '\\ud83e!'"):
        ask(target, EmbedRequest(("ok", "abc\ud83e!")))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_nobody_there_is_an_error_that_names_the_address(protocol: str) -> None:
    nobody = Endpoint("127.0.0.1", 9)
    target = Target(Endpoints(nobody, nobody), "m", {"protocol": protocol}, timeout_s=5)
    with pytest.raises(InferenceError, match=r"127\.0\.0\.1:9"):
        ask(target, TensorRequest({"x": np.zeros(1)}))


def test_silence_over_grpc_ends_at_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = Endpoint("127.0.0.1", listener.getsockname()[1])
        target = Target(Endpoints(silent, silent), "m", {"protocol": "grpc"}, timeout_s=0.3)
        with pytest.raises(InferenceError, match=rf"no answer from 127.0.0.1:{silent.port} for 0.3 s"):
            ask(target, TensorRequest({"x": np.zeros(1)}))
