"""Why a program ended: the log's words become one sentence, a remedy, and whether a restart can help."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launcher.runtimes.process import oom_kills
from launcher.supervise.diagnosis import SIGNATURES, Diagnosis, evidence, explain, hint

#: a line as the programs write it → (the cause that is named, permanent)
LINES = [
    ("OSError: [Errno 98] Address already in use", "its port is taken", False),
    ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8000", "its port is taken", False),
    ("error: cannot read the model '/m/x.gguf': Permission denied", "it may not open a file", True),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "the machine's memory is full", True),
    ("OSError: [Errno 12] Cannot allocate memory", "the machine's memory is full", True),
    ("RuntimeError: can't start new thread", "it may not start another thread", False),
    ("OSError: [Errno 28] No space left on device: '/x'", "a disk is full", True),
    ("Too small maximum heap", "Java's heap is too small", True),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'java'", "there is no such Java", True),
    ("ImportError: libgomp.so.1: cannot open shared object file: No such file or directory",
     "OpenMP's library, which llama.cpp uses, is missing", True),
    ("stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file",
     "Python's shared library, which Triton embeds, is missing", True),
    ("Fatal Python error: Segmentation fault",
     "native code in it crashed, of a library that computes the model", False),
    ("native.LibraryError: npu_open failed with 2: /dev/npu0 is in use by another process",
     "the library that computes the model refused it", False),
    ("tritonserver: error while loading shared libraries: libdcgm.so.3: cannot open shared object file: No such file",
     "a shared library is missing", True),
    ("RuntimeError: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')",
     "it wants to compile, and there is no C++ compiler", True),
    ("subprocess.CalledProcessError: Command 'lscpu --json' returned non-zero exit status 127.",
     "a program that it starts is missing", True),
    ("ModuleNotFoundError: No module named 'torch'", "a Python package is missing in its environment", True),
    ("server.py: error: unrecognized arguments: --bogus", "it does not know one of its flags", True),
    ("error: '/m/x.gguf' is not a GGUF file: it starts with b'abcd'", "the model's file cannot be read", True),
    ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
     "the model's file cannot be read", True),
    ("ValueError: Unrecognized model in /m. Should have a `model_type` key in its config.json.",
     "the model's folder has no config.json that can be read", True),
    ("OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory /m.",
     "the model's folder has no weights that it may read", True),
    ("ValueError: Couldn't instantiate the backend tokenizer from one of:",
     "the model's folder has no tokenizer", True),
    ("srv init: init: chat template parsing error: std::exception", "its chat template cannot be used", True),
    ("ValueError: max_context is 16384, but the model's limit is 8192",
     "model.context_length is longer than the model can", True),
    ("llama_model_load: error loading model: unknown model architecture: 'x'",
     "this engine does not know the model's architecture", True),
    ("ValueError: The repository /m contains custom code which must be executed to correctly load the model.",
     "the model brings Python code of its own, which is not run", True),
    ("ValueError: […] (0.04 GiB KV cache is needed, which is larger than the available KV cache memory (0.01 GiB).",
     "the memory for its KV cache does not hold one context of that length", True),
    ("ValueError: Available memory on node 0 (12/13 GiB) on kv cache allocation is less than requested memory for kv",
     "its KV cache is to be larger than the memory that is free", True),
    ("Unable to initialize shared memory key 'x' to requested size (1048576 bytes).",
     "there is too little shared memory", True),
    ("huggingface_hub.errors.LocalEntryNotFoundError: […] on the local disk and outgoing traffic has been disabled.",
     "it wants something from the model hub, and engines are kept offline", True),
    ("Invalid argument: unable to find backend library for backend 'python', try specifying runtime",
     "this tritonserver has not the backend that the model needs", True),
    ("cmn common_init_: failed to load model '/m/x.gguf'", "the model cannot be loaded", True),
    ("[FATAL tini (7)] exec /opt/none failed: No such file or directory", "the image has no such program", True),
    # The faults from here on were not caused on the way to these lines.
    # GPUs: the words of CUDA's runtime, torch, llama.cpp, NVML and vLLM 0.32 (vllm/v1/worker/utils.py).
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
     "the GPU's memory is full", True),
    ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 48.09 MiB on device 0: cudaMalloc failed: out of memory",
     "the GPU's memory is full", True),
    ("ValueError: Free memory on device cuda:0 (7/139 GiB) on startup is less than desired GPU memory utilization (0.9",
     "others hold memory of the GPU that it wants", False),
    ("RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
     "NVIDIA's driver is older than the packages in its environment need", True),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
     "NVIDIA's driver is older than the packages in its environment need", True),
    ("pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch",
     "NVIDIA's driver was updated while the old one was still loaded", True),
    ("RuntimeError: Found no NVIDIA driver on your system.", "it finds no usable GPU", True),
    ("ValueError: device 'cuda': torch 2.13.0 sees no GPU", "it finds no usable GPU", True),  # hugging_face.py
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
     "it finds no usable GPU", True),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device",
     "its packages are not built for this GPU", True),
    ("torch.AcceleratorError: CUDA error: out of memory", "the GPU's memory is full", True),
    ("RuntimeError: No CUDA GPUs are available", "it finds no usable GPU", True),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing",
     "the memory for its KV cache does not hold one context of that length", True),
    ("ValueError: Available memory on node 0 (1/13 GiB) on startup is less than desired CPU memory utilization (0.9",
     "its KV cache is to be larger than the memory that is free", True),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable",  # of the package triton
     "it wants to compile, and there is no C++ compiler", True),
    # Memory that several processes share: the words of torch's C++.
    ("RuntimeError: unable to open shared memory object </torch_1_2> in read-write mode: No space left on device (28)",
     "there is too little shared memory", True),
    ("java.lang.OutOfMemoryError: unable to create native thread", "it may not start another thread", False),
    # llama-server, where engine.program names one.
    ("error: the supplied chat template is not supported: x", "its chat template cannot be used", True),
    ("init: failed to initialize chat template", "its chat template cannot be used", True),
    ("error: invalid argument: --bogus", "it does not know one of its flags", True),
    # Triton of versions before 2.40.
    ("Poll failed for model directory 'm': unexpected platform type 'tensorflow_graphdef' for m",
     "this tritonserver has not the backend that the model needs", True),
    # The hub: the words of transformers 5.23 and huggingface_hub 2.4.
    ("OSError: You are trying to access a gated repo.", "the model hub does not give the model to you", True),
    ("huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-2;3)",
     "the model hub does not give the model to you", True),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached",
     "it wants something from the model hub, and engines are kept offline", True),
    ("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/x/y: offline mode is enabled.",
     "it wants something from the model hub, and engines are kept offline", True),
    ("Cannot access gated repo for url https://huggingface.co/google/gemma-2-2b/resolve/main/config.json.",
     "the model hub does not give the model to you", True),
    ("OSError: x/y is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
     "the model hub does not give the model to you", True),
    ("OSError: /m does not appear to have a file named config.json. Checkout 'https://huggingface.co//m/tree/main' for",
     "the model's folder has no config.json that can be read", True),
    ("OSError: /m does not appear to have a file named model-00002-of-00002.safetensors. Checkout",
     "the model's folder has no weights that it may read", True),
    ("OSError: Can't load tokenizer for '/m'. If you were trying", "the model's folder has no tokenizer", True),
    ("OSError: Unable to load vocabulary from file. Please check that", "the model's folder has no tokenizer", True),
    ("ValueError: Unrecognized configuration class <class 'x.BertConfig'> for this kind of AutoModel: X.",
     "this engine does not know the model's architecture", True),
    # RBLN: vllm-rbln 0.12 (platform/optimum_impl.py, config.py, utils/optimum/converter) and optimum-rbln 0.12.
    ("AssertionError: Cannot set tensor_parallel_size on the optimum model path.",
     "vllm-rbln refuses one of its settings", True),
    ("ValueError: The vllm model path is not supported on RBLN-CA25; --model-impl vllm selected it.",
     "vllm-rbln refuses one of its settings", True),
    ("ValueError: max_num_batched_tokens (8192) conflicts with the compiled prefill_chunk_size (128) in",
     "vllm-rbln refuses one of its settings", True),
    ("ValueError: additional_config takes only OptimumRBLNConfig fields, and ['foo'] are not fields.",
     "vllm-rbln refuses one of its settings", True),
    ("ValueError: `block_size` is required to run optimum-rbln models in vLLM RBLN.",
     "vllm-rbln refuses one of its settings", True),
    ("NameError: Cannot load the model. The model was originally compiled using RBLNX, but you are trying to load it",
     "the model was compiled for another version of vllm-rbln", True),
    ("ValueError: `/m/rbln_config.json` is an old version. Please recompile the model to get the latest config file.",
     "the model was compiled for another version of vllm-rbln", True),
    ("Maybe you are trying to load a model compiled with newer version of optimum-rbln.",
     "the model was compiled for another version of vllm-rbln", True),
    # Furiosa: furiosa-llm 2026.4 (device.py).
    ("ValueError: No available devices found. Please specify `devices` argument or ensure that the devices are",
     "no NPU is free", False),
]  # fmt: skip


@pytest.mark.parametrize(("line", "cause", "permanent"), LINES)
def test_a_known_line_is_a_cause_with_its_remedy(line: str, cause: str, permanent: bool) -> None:
    known = next(signature for signature in SIGNATURES if signature.cause == cause)

    assert explain(1, ["loading", f"  {line}  ", "bye"]) == Diagnosis(
        f"exited 1: {cause} ({line}); {known.remedy}", permanent
    )


def test_what_others_have_taken_may_come_back_to_one_that_has_served() -> None:
    for line, cause, permanent in LINES:
        known = next(signature for signature in SIGNATURES if signature.cause == cause)
        assert explain(1, [line], served=True).permanent is (permanent and not known.shortage), line

    assert explain(1, ["OSError: [Errno 28] No space left on device"]).permanent
    assert not explain(1, ["OSError: [Errno 28] No space left on device"], served=True).permanent
    assert explain(1, ["ModuleNotFoundError: No module named 'torch'"], served=True).permanent


def test_every_signature_has_a_line_here() -> None:
    assert {signature.cause for signature in SIGNATURES} == {cause for _, cause, _ in LINES}


def test_the_first_signature_wins_wherever_its_line_stands() -> None:
    log = ["error: invalid argument: --x", "CUDA out of memory"]

    assert "the GPU's memory is full" in explain(1, log).sentence
    assert "the GPU's memory is full" in explain(1, log[::-1]).sentence


def test_the_last_line_of_several_is_quoted() -> None:
    log = ["RuntimeError: Found no NVIDIA driver on your system.", "RuntimeError: No CUDA GPUs are available", "bye"]

    assert "it finds no usable GPU (RuntimeError: No CUDA GPUs are available); " in explain(1, log).sentence


@pytest.mark.parametrize(
    "decorated",
    [
        "(EngineCore pid=9) ERROR 11-21 19:00:49 [core.py:1510] {}",  # vLLM
        "(EngineCore pid=9) {}",
        'E1121 18:54:05.767813 4863 model_lifecycle.cc:642] "{}\\n\\nAt:\\n  model.py(34): initialize\\n"',  # Triton
        "| smollm2 | 1       | UNAVAILABLE: Internal: {}              |",
        "2026-11-21T19:19:00,465 WARN  MODEL_LOG {}",  # TorchServe
        "0.00.037.175 E {}",  # llama.cpp
        "  {}  ",
    ],
)
def test_a_line_is_quoted_without_what_its_logger_puts_around_it(decorated: str) -> None:
    line = "RuntimeError: can't start new thread"

    assert f"it may not start another thread ({line}); " in explain(1, [decorated.format(line)]).sentence


@pytest.mark.parametrize(
    "line",
    [
        'W1121 18:53:01.5 36 pinned_memory_manager.cc:273] "CUDA driver version is insufficient for CUDA"',
        "(APIServer pid=1) WARNING 11-21 18:57:52 [system_utils.py:255] No space left on device",
        "(APIServer pid=1) INFO 11-21 18:57:52 [api_utils.py:286] non-default args: {'x': 'CUDA out of memory'}",
        "0.00.002.212 W srv          init: Permission denied",
        '    raise ValueError("No module named")',  # a line of source
    ],
)
def test_a_warning_is_no_cause_nor_is_a_line_of_source(line: str) -> None:
    assert explain(1, [line]) == Diagnosis("exited 1", permanent=False)


def test_an_error_that_nobody_knows_is_told_but_not_one_that_sends_the_reader_upwards() -> None:
    log = [
        '  File "x.py", line 1, in f',
        "mine.errors.OddError: the moon is full",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "error: creating server: Internal - failed to load all models",
    ]

    assert explain(1, log) == Diagnosis("exited 1: mine.errors.OddError: the moon is full", permanent=False)
    assert explain(1, log[2:]) == Diagnosis("exited 1", permanent=False)


def test_what_an_engine_that_has_served_said_long_ago_is_no_cause() -> None:
    log = ["RuntimeError: CUDA out of memory", *["INFO: a request"] * 200]

    assert "the GPU's memory is full" in explain(1, log).sentence
    assert explain(1, log, starting=False) == Diagnosis("exited 1", permanent=False)
    assert explain(1, log[:50], starting=False).sentence.startswith("exited 1: the GPU's memory is full")
    assert not explain(1, log[:50], starting=False).permanent


def test_a_cause_is_found_far_above_the_end_and_in_a_very_long_line(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    names = ", ".join(f"'Model{number}ForCausalLM'" for number in range(500))
    log.write_text(
        f"Value error, Model architectures ['X'] are not supported for now. It has: {names}\n" + "usage\n" * 400
    )

    assert log.stat().st_size > 8192
    assert "does not know the model's architecture (Value error, Model architectures ['X']" in hint(evidence(log))


def test_no_more_of_a_log_is_read_than_its_end(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    log.write_text("CUDA out of memory\n" + "x\n" * 100_000)

    assert hint(evidence(log)) == ""
    assert len(evidence(log)) < 50_000
    assert evidence(tmp_path / "none.log") == []


@pytest.mark.parametrize(
    ("number", "words", "permanent"),
    [
        (signal.SIGKILL, "SIGKILL", False),
        (signal.SIGILL, "instruction that this processor lacks", True),
        (signal.SIGSEGV, "SIGSEGV", False),
        (signal.SIGBUS, "/dev/shm is full", False),
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


@pytest.mark.parametrize("number", range(1, signal.NSIG))
def test_every_signal_can_be_said(number: int) -> None:
    assert explain(-number, []).sentence


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (0, "exited 0"),
        (3, "exited 3"),
        (-10, "ended by SIGUSR1"),
        (-34, "ended by SIGRTMIN"),
        (-35, "ended by signal 35"),
        (-63, "ended by signal 63"),
    ],
)
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
