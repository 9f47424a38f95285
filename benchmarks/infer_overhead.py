"""`engine.infer` beside tritonclient used by hand, on the same trivial Triton model of the same server."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import tritonclient.grpc as triton

from benchmarks.table import percentile, show
from launcher import launch
from launcher.progress import Progress

WARM_UP, ROUNDS = 300, 3000


class ByHand:
    """The code that a careful user of tritonclient writes: one stream, kept open."""

    def __init__(self, address: str, model: str) -> None:
        self._model = model
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client = triton.InferenceServerClient(address)
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def infer(self, text: str, max_tokens: int) -> str:
        sampling = json.dumps({"max_tokens": max_tokens, "temperature": 0.0})
        inputs = [
            self._bytes("text_input", text),
            self._bytes("sampling_parameters", sampling),
            triton.InferInput("exclude_input_in_output", [1], "BOOL"),
        ]
        inputs[2].set_data_from_numpy(numpy.array([True]))
        self._client.async_stream_infer(self._model, inputs, enable_empty_final_response=True)
        answer = ""
        while True:
            result, error = self._answers.get(timeout=60)
            if error:
                raise error
            response = result.get_response()
            if response.outputs:
                answer += result.as_numpy("text_output").reshape(-1)[0].decode()
            if response.parameters["triton_final_response"].bool_param:
                return answer

    @staticmethod
    def _bytes(name: str, text: str) -> Any:
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([text.encode()], dtype=object))
        return tensor

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


def main() -> None:
    handler = Path(__file__).parent / "echo_model.py"
    words = ("engine=triton", "device=cpu", "model=smollm2", f"engine.handler={handler}")
    with launch(*words, progress=Progress()) as engine:
        by_hand = ByHand(str(engine.plan.endpoints.grpc), engine.plan.model.id)
        asks: dict[str, Callable[[], str]] = {
            "tritonclient by hand (gRPC stream)": lambda: by_hand.infer("hello", max_tokens=8),
            "engine.infer": lambda: engine.infer("hello", max_tokens=8),
        }
        times: dict[str, list[float]] = {name: [] for name in asks}
        for number in range(WARM_UP + ROUNDS):
            # In turns and each first every other time: a busy moment of the machine hits both.
            for name, ask in list(asks.items())[:: 1 if number % 2 else -1]:
                began = time.perf_counter_ns()
                answer = ask()
                took = (time.perf_counter_ns() - began) / 1e6
                assert answer == "hello"
                if number >= WARM_UP:
                    times[name].append(took)
        by_hand.close()
    raw = percentile(times["tritonclient by hand (gRPC stream)"], 0.5)
    rows = [
        [name, f"{percentile(took, 0.5):.3f}", f"{percentile(took, 0.9):.3f}", f"{percentile(took, 0.5) / raw:.3f}"]
        for name, took in times.items()
    ]
    show("infer on a trivial Triton model", ["", "p50 ms", "p90 ms", "against by hand, p50 (at most 1.03)"], rows)
