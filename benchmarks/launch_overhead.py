"""From the shell to the engine's program, beside a bare Hydra application; environment ready.

The engine's program is a shell script that writes down when it runs. The peer is Hydra's hello-world, which writes down
when its function is called. Both run in the same virtual environment, taking turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import percentile, show
from launcher.paths import cache_root

ROUNDS = 15

#: the file is named in the script: variables of the shell do not reach an engine
_STAMP = "#!/bin/sh\ndate +%s%N > '{file}'\n"
_HELLO = """
import time
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(config):
    print(time.time_ns())

main()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "program"
        program.write_text(_STAMP.format(file=folder / "stamp"))
        program.chmod(0o755)
        (folder / "config.yaml").write_text("greeting: hello\n")
        (folder / "hello.py").write_text(_HELLO)
        os.environ["RMLAUNCH_STATE"] = f"{folder}/state"
        ours, anew, peer = [], [], []
        for _ in range(ROUNDS):
            shutil.rmtree(cache_root() / "configs", ignore_errors=True)
            anew.append(_launch_ms(folder, program))
            ours.append(_launch_ms(folder, program))
            peer.append(_hydra_ms(folder))
    ours, anew, peer = ours[1:], anew[1:], peer[1:]  # the first of each warms the disk's cache
    show(
        "Shell → the engine's program",
        ["", "p50 ms", "p90 ms", "against the peer, p50"],
        [
            ["bare Hydra hello-world → its function", *_row(peer), "1.00"],
            ["rmlaunch → exec", *_row(ours), f"{percentile(ours, 0.5) / percentile(peer, 0.5):.2f} (at most 0.75)"],
            ["the same words for the first time", *_row(anew), f"{percentile(anew, 0.5) / percentile(peer, 0.5):.2f}"],
        ],
    )


def _row(values: list[float]) -> tuple[str, str]:
    return f"{percentile(values, 0.5):.0f}", f"{percentile(values, 0.9):.0f}"


def _launch_ms(folder: Path, program: Path) -> float:
    began = time.time_ns()
    # The program ends at once, so the launch fails: what counts is when it was reached.
    subprocess.run(
        [f"{Path(sys.executable).parent}/rmlaunch", "engine=llamacpp", "device=cpu", "model=smollm2",
         f"engine.program={program}", "supervise.max_crashes=1"],
        cwd=folder, stderr=subprocess.DEVNULL, check=False, timeout=60,
    )  # fmt: skip
    stamp = folder / "stamp"
    reached = int(stamp.read_text())
    stamp.unlink()
    return (reached - began) / 1e6


def _hydra_ms(folder: Path) -> float:
    began = time.time_ns()
    done = subprocess.run(
        [sys.executable, "hello.py", "greeting=hi"], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return (int(done.stdout) - began) / 1e6
