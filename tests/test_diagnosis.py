"""Why a program ended: the log's words become one sentence, a remedy, and whether a restart can help."""

from __future__ import annotations

import signal

import pytest

from launcher.diagnosis import SIGNATURES, Diagnosis, explain, oom_kills

#: a line as the programs themselves write it → (the cause that is named, permanent)
LINES = [
    ("OSError: [Errno 98] Address already in use", "its port is taken", False),
    ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8000", "its port is taken", False),
    ("E1 failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use", "its port is taken", False),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "the GPU's memory is full", True),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "the machine's memory is full", True),
    ("OSError: [Errno 12] Cannot allocate memory", "the machine's memory is full", True),
    ("OSError: [Errno 28] No space left on device: '/x'", "a disk is full", True),
    ("tritonserver: error while loading shared libraries: libdcgm.so.3: cannot open shared object file: No such file",
     "a shared library is missing", True),
    ("ImportError: libgomp.so.1: cannot open shared object file: No such file or directory",
     "OpenMP's library, which llama.cpp uses, is missing", True),
    ("stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file",
     "Python's shared library, which Triton embeds, is missing", True),
    ("2026-11-21T19:19:00,465 WARN  MODEL_LOG Fatal Python error: Segmentation fault",
     "native code in it crashed, of a library that computes the model", False),
    ("native.LibraryError: npu_open failed with 2: /dev/npu0 is in use by another process",
     "the library that computes the model refused it", False),
    ("ModuleNotFoundError: No module named 'torch'", "a Python package is missing in its environment", True),
    ("server.py: error: unrecognized arguments: --bogus", "it does not know one of its flags", True),
    ("error: invalid argument: --bogus", "it does not know one of its flags", True),
    ("error: '/m/x.gguf' is not a GGUF file: it starts with b'abcd'", "the model's file cannot be read", True),
    ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
     "the model's file cannot be read", True),
]  # fmt: skip


@pytest.mark.parametrize(("line", "cause", "permanent"), LINES)
def test_a_known_line_is_a_cause_with_its_remedy(line: str, cause: str, permanent: bool) -> None:
    known = next(signature for signature in SIGNATURES if signature.cause == cause)

    assert explain(1, ["loading", f"  {line}  ", "bye"]) == Diagnosis(
        f"exited 1: {cause} ({line}); {known.remedy}", permanent
    )


def test_every_signature_has_a_line_here() -> None:
    assert {signature.cause for signature in SIGNATURES} == {cause for _, cause, _ in LINES}


def test_the_first_signature_wins_wherever_its_line_stands() -> None:
    log = ["error: invalid argument: --x", "CUDA out of memory"]

    assert "the GPU's memory is full" in explain(1, log).sentence


@pytest.mark.parametrize(
    ("number", "words", "permanent"),
    [
        (signal.SIGKILL, "SIGKILL", False),
        (signal.SIGILL, "instruction that this processor lacks", True),
        (signal.SIGSEGV, "SIGSEGV", False),
        (signal.SIGABRT, "SIGABRT", False),
        (signal.SIGTERM, "SIGTERM", False),
    ],
)
def test_a_signal_is_named(number: signal.Signals, words: str, permanent: bool) -> None:
    verdict = explain(-number, ["nothing to see"])

    assert words in verdict.sentence
    assert verdict.permanent is permanent


def test_a_known_line_says_more_than_the_signal() -> None:
    assert explain(-signal.SIGABRT, ["std::bad_alloc"]).sentence.startswith(
        "ended by SIGABRT: the machine's memory is full (std::bad_alloc); "
    )


@pytest.mark.parametrize(("code", "sentence"), [(0, "exited 0"), (3, "exited 3"), (-10, "ended by SIGUSR1")])
def test_an_end_without_a_known_cause_is_only_said(code: int, sentence: str) -> None:
    assert explain(code, ["hello"]) == Diagnosis(sentence, permanent=False)
    assert explain(code, []) == Diagnosis(sentence, permanent=False)


def test_a_sentence_is_one_line_and_a_long_log_line_is_cut() -> None:
    sentence = explain(1, ["No space left on device " + "x" * 1000]).sentence

    assert "\n" not in sentence
    assert len(sentence) < 400


def test_a_kill_is_the_kernels_where_it_has_killed_for_memory_since() -> None:
    assert explain(-signal.SIGKILL, [], out_of_memory=True).sentence.startswith(
        "the kernel killed it because memory had"
    )
    assert explain(-signal.SIGKILL, []).sentence == "somebody killed it (SIGKILL)"
    assert explain(1, [], out_of_memory=True).sentence.startswith(
        "exited 1, after the kernel killed a process because memory had run out; use a smaller model"
    )
    assert "its port is taken" in explain(1, ["Address already in use"], out_of_memory=True).sentence
    assert oom_kills() >= 0
