"""A made-up NVML: the functions of pynvml that we use, over GPUs that are written out. No GPU has said any of this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class Card:
    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-00aa"
    total: int = 80 << 30
    used: int = 1 << 30
    mig: bool | None = None  #: None is a card that cannot
    processes: dict[int, int | None] = field(default_factory=dict)
    lost: bool = False


def module(cards: Sequence[Card], broken: str = "", without: Sequence[str] = ()) -> ModuleType:
    """To be put in place of pynvml. `broken` is a function that fails, `without` are those that an old one lacks."""

    def handle(index: int) -> Card:
        if cards[index].lost:
            raise NVMLError("GPU is lost")
        return cards[index]

    def mig(card: Card) -> list[int]:
        if card.mig is None:
            raise NVMLError("Not Supported")
        return [int(card.mig), int(card.mig)]

    def processes(card: Card) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.processes.items()]

    functions: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetName": lambda card: card.name,
        "nvmlDeviceGetUUID": lambda card: card.uuid,
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card.total, used=card.used),
        "nvmlDeviceGetComputeRunningProcesses": processes,
        "nvmlDeviceGetMigMode": mig,
        "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        "nvmlDeviceGetPciInfo": lambda _: SimpleNamespace(busId=b"00000000:51:00.0"),
        "nvmlSystemGetDriverVersion": lambda: b"580.95.05",
        "nvmlSystemGetCudaDriverVersion": lambda: 13010,
    }

    def fail(*_: Any) -> None:
        raise NVMLError(f"{broken} failed")

    made = ModuleType("pynvml")
    made.NVMLError = NVMLError  # type: ignore[attr-defined]
    for name, function in functions.items():
        if name not in without:
            setattr(made, name, fail if name == broken else function)
    return made
