"""Why an engine's program ended, in one plain sentence and a remedy: signatures as data, matched against its log."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.runtimes.base import UNSEEN


@dataclass(frozen=True, slots=True)
class Signature:
    pattern: str  #: a regular expression, matched line by line, case-insensitively
    cause: str
    remedy: str
    permanent: bool = True  #: starting it again cannot help


@dataclass(frozen=True, slots=True)
class Diagnosis:
    sentence: str
    permanent: bool


_LINES = 100  #: from the end of the log; Triton writes 70 after the reason why a model cannot be loaded

#: among those that match a line the first wins, so the specific ones stand first
SIGNATURES = (
    Signature(
        r"address already in use|failed to start HTTP service: Unavailable|couldn't bind.*server socket",
        "its port is taken",
        "choose another port, or leave it out",
        permanent=False,  # the last connections of a stopped server can hold it for a moment
    ),
    Signature(r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation",
              "the GPU's memory is full", "free the GPU, or lower model.context_length or the batch size"),
    Signature(r"std::bad_alloc|Cannot allocate memory|MemoryError|DefaultCPUAllocator: can't allocate memory",
              "the machine's memory is full", "use a smaller model or a shorter model.context_length"),
    Signature(r"No space left on device", "a disk is full", "free space where the state and cache folders are"),
    Signature(r"libpython3\.\d+\.so\S*: cannot open shared object",
              "Python's shared library, which Triton embeds, is missing",
              "install it (Debian: apt-get install libpython3.11, of the environment's version)"),
    Signature(r"libgomp\.so\S*: cannot open shared object",
              "OpenMP's library, which llama.cpp uses, is missing", "install it (Debian: apt-get install libgomp1)"),
    Signature(r"\S+\.so\S*: cannot open shared object",
              "a shared library is missing", "install the package that has it"),
    Signature(r"Fatal Python error: (Segmentation fault|Bus error|Illegal instruction|Aborted|Floating)",
              "native code in it crashed, of a library that computes the model",
              "check that driver, runtime library and compiled model belong together; the log has the call",
              permanent=False),  # it may have been a request
    Signature(r"LibraryError: ", "the library that computes the model refused it",
              "check device.sdk.runtime, the driver and the model's file", permanent=False),
    Signature(r"ModuleNotFoundError: No module named",
              "a Python package is missing in its environment", "add it to engine.environments.<device>.requirements"),
    Signature(r"unrecognized arguments?:|error: invalid argument:|unknown argument:|unrecognized option",
              "it does not know one of its flags", "check engine.args"),
    Signature(r"is not a GGUF file|model is corrupted or incomplete|failed to load model|deserializing header",
              "the model's file cannot be read", "check model.source and model.format; fetch it again"),
)  # fmt: skip

_OUT_OF_MEMORY = (
    "the kernel killed {whom} because memory had run out; use a smaller model or a shorter model.context_length, or "
    "give it more memory"
)
_SIGNALS = {
    signal.SIGKILL: ("somebody killed it (SIGKILL)", False),
    signal.SIGILL: ("it used an instruction that this processor lacks (SIGILL); use a build for this processor", True),
    signal.SIGSEGV: ("it crashed (SIGSEGV)", False),
    signal.SIGTERM: ("somebody ended it (SIGTERM)", False),
}


def oom_kills() -> int:
    """How many processes the kernel has killed since the machine started because memory had run out."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def explain(exit_code: int, log: Sequence[str], starting: bool = True, out_of_memory: bool = False) -> Diagnosis:
    """One sentence for a program that ended with `exit_code` and wrote `log` (its last lines).

    `out_of_memory` says that the kernel has killed somebody for memory since the program was started.

    A cause is permanent only where it was found while `starting`: an engine that has served once can serve again, and
    what it logs meanwhile may be a client's words. Nor does its log say why somebody else's signal ended it.
    """
    ended = _ended(exit_code)
    if exit_code == -signal.SIGKILL and out_of_memory:
        return Diagnosis(_OUT_OF_MEMORY.format(whom="it"), permanent=False)
    if exit_code < 0 and -exit_code in _SIGNALS:
        sentence, permanent = _SIGNALS[signal.Signals(-exit_code)]
        return Diagnosis(sentence, permanent and starting)
    for line in reversed(log[-_LINES:]):
        for known in SIGNATURES:
            if re.search(known.pattern, line, re.IGNORECASE):
                sentence = f"{ended}: {known.cause} ({line.strip()[:200]}); {known.remedy}"
                return Diagnosis(sentence, known.permanent and starting)
    if out_of_memory:  # of its workers perhaps, whose end it did not survive
        return Diagnosis(f"{ended}, after {_OUT_OF_MEMORY.format(whom='a process')}", permanent=False)
    return Diagnosis(ended, False)


def _ended(exit_code: int) -> str:
    if exit_code == UNSEEN:
        return "it ended, and nobody saw its exit code"
    return f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited {exit_code}"
