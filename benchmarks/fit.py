"""The estimate of launcher/fit beside what the engines of this CPU really take, as the table of docs/fit.md.

Measured is the highest PSS (memory that is shared is shared out) of all processes of the engine, from the start until
as many requests as it computes at a time have filled most of their context.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.table import show
from engines.base import RmLaunchError
from launcher import launch
from launcher.config.compose import compose
from launcher.deployments.ledger import Ledger
from launcher.paths import cache_root
from launcher.planning import environments
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from launcher.prepare.environments import ensure
from launcher.progress import Progress
from launcher.serving.engine import ServingEngine

#: engine, how many requests, how much of the context each fills, context lengths
CASES = [
    ("llamacpp", 2, 0.45, (2048, 8192)),  # they share it
    ("vllm", 2, 0.9, (2048,)),
    ("transformers", 1, 0.9, (2048,)),
    ("triton", 2, 0.9, (2048,)),
    ("torchserve", 2, 0.9, (2048,)),
]
_MIB = 1 << 20
_PERIOD_S = 0.1


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rml-") as folder:
        random = _random_model(Path(folder, "model"))
        rows = []
        for engine, requests, share, lengths in CASES:
            rows += [_row(engine, "smollm2", length, ("model=smollm2",), requests, share) for length in lengths]
            if engine != "llamacpp":  # it reads GGUF alone
                words = ("model=gpt2", f"model.source=file:{random}", "model.id=random", "model.dtype=bfloat16")
                rows.append(_row(engine, "random, 428M", 2048, words, requests, share))
    head = ["engine", "model", "context", "estimated MiB", "measured MiB", "measured / estimated"]
    show("Estimate and measurement, on a CPU", head, rows)


def _row(engine: str, model: str, length: int, chosen: Sequence[str], requests: int, share: float) -> list[str]:
    words = (f"engine={engine}", "device=cpu", *chosen, f"model.context_length={length}")
    server = launch(*words, progress=Progress())
    with _Peak(server) as peak, server:
        with ThreadPoolExecutor(requests) as pool:
            list(pool.map(lambda _: _fill(server, int(share * length)), range(requests)))
        memory = server.plan.memory
    assert memory is not None
    ratio = peak.bytes / memory.needed
    numbers = [str(length), f"{memory.needed / _MIB:.0f}", f"{peak.bytes / _MIB:.0f}", f"{ratio:.2f}"]
    server.progress.note(f"{engine} {model}: estimated, measured, ratio: {', '.join(numbers[1:])}; {memory}")
    return [engine, model, *numbers]


def _fill(server: ServingEngine, tokens: int) -> None:
    """One word is one token."""
    server.infer("hello" + " hello" * (tokens - 1), max_tokens=16)


class _Peak:
    """Looks at the processes of a deployment until it ends."""

    def __init__(self, server: ServingEngine) -> None:
        self.bytes = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._over.wait(_PERIOD_S):
            with contextlib.suppress(RmLaunchError, psutil.Error):
                program = psutil.Process(self._server.news.pid)
                self.bytes = max(self.bytes, sum(map(_pss, [program, *program.children(recursive=True)])))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended meanwhile
        return 0


def _random_model(output: Path) -> Path:
    config = compose(["model=smollm2"])
    environment = environments.describe("convert", "managed", config.builders["convert"], cache_root())
    ensure(environment, Progress())
    _, spec = resolve(
        settle(["engine=transformers", "device=cpu"], this_machine()).config,
        Machine(Ledger(output.parent)),
    )
    tokenizer = spec.model.path
    script = str(Path(__file__).with_name("random_llama.py"))
    subprocess.run([f"{environment.bin}/python", script, tokenizer, str(output)], check=True)
    return output


if __name__ == "__main__":
    main()
