"""What real engines write when they cannot start, and what is made of it.

logs/<engine>-<fault>.log holds the end of the log of one start, at most 60 lines of it, as the engine wrote it; `[… N
lines]` stands for lines that were left out, and folders of the machine go by other names. logs/<engine>-healthy.log is
the whole log of a start that served.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from launcher import registry
from launcher.config.schema import DeviceConf, EngineConf, ModelConf, SuperviseConf
from launcher.supervise.diagnosis import SIGNATURES, Diagnosis, evidence, explain, hint

LOGS = Path(__file__).parent / "logs"
ENGINES = ("llamacpp", "torchserve", "transformers", "triton", "vllm")

FLAG = "it does not know one of its flags"
PORT = "its port is taken"
MEMORY = "the machine's memory is full"
BROKEN = "the model's file cannot be read"
NO_CONFIG = "the model's folder has no config.json that can be read"
NO_WEIGHTS = "the model's folder has no weights that it may read"
NO_TOKENIZER = "the model's folder has no tokenizer"
ARCHITECTURE = "this engine does not know the model's architecture"
OWN_CODE = "the model brings Python code of its own, which is not run"
TOO_LONG = "model.context_length is longer than the model can"
PACKAGE = "a Python package is missing in its environment"
FORBIDDEN = "it may not open a file"
TEMPLATE = "its chat template cannot be used"
HEAP = "Java's heap is too small"
BACKEND = "this tritonserver has not the backend that the model needs"

#: log → the cause that is named, and how the line begins that is quoted
FAULTS = {
    "llamacpp-bad-chat-template": (TEMPLATE, "srv init: init: chat template parsing error: std::exception"),
    "llamacpp-model-cut-in-header": (BROKEN, "gguf_init_from_reader: failed to read key-value pairs"),
    "llamacpp-model-not-gguf": (BROKEN, "error: '/model.gguf' is not a GGUF file: it starts with b'<!DO'"),
    "llamacpp-model-truncated": (
        BROKEN,
        "llama_model_load: error loading model: tensor 'token_embd.weight' data is not",
    ),
    "llamacpp-no-libgomp": (
        "OpenMP's library, which llama.cpp uses, is missing",
        "ImportError: libgomp.so.1: cannot open shared object file: No such file or",
    ),
    "llamacpp-no-permission": (FORBIDDEN, "error: cannot read the model '/model.gguf': Permission denied"),
    "llamacpp-out-of-memory": (MEMORY, "ggml_aligned_malloc: insufficient memory (attempted to allocate 41.96 MB)"),
    "llamacpp-port-taken": (PORT, "error: cannot listen on 127.0.0.1:18765: Address already in use"),
    "llamacpp-unknown-architecture": (
        ARCHITECTURE,
        "llama_model_load: error loading model: unknown model architecture: 'foozl'",
    ),
    "llamacpp-unknown-flag": (FLAG, "server.py: error: unrecognized arguments: --bogus 1"),
    "torchserve-context-too-long": (TOO_LONG, "ValueError: max_context is 16384, but the model's limit is 8192"),
    "torchserve-heap-tiny": (HEAP, "Too small maximum heap"),
    "torchserve-heap-too-small": (HEAP, "java.lang.OutOfMemoryError: Java heap space"),
    "torchserve-model-garbage": (BROKEN, "safetensors._safetensors_rust.SafetensorError: Error while deserializing"),
    "torchserve-no-config": (NO_CONFIG, "ValueError: Unrecognized model in /model. Should have a `model_type` key in"),
    "torchserve-no-java": (
        "there is no such Java",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/java'",
    ),
    "torchserve-no-tokenizer": (NO_TOKENIZER, "ValueError: Couldn't instantiate the backend tokenizer from one of:"),
    "torchserve-no-weights": (
        NO_WEIGHTS,
        "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in",
    ),
    "torchserve-no-memory-for-java": (MEMORY, "Could not allocate compressed class space: 1073741824 bytes"),
    "torchserve-out-of-memory": (
        MEMORY,
        "# There is insufficient memory for the Java Runtime Environment to continue.",
    ),
    "torchserve-port-taken": (PORT, "Caused by: io.netty.channel.unix.Errors$NativeIoException: bind(..) failed:"),
    "torchserve-remote-code": (
        OWN_CODE,
        "ValueError: The repository /model contains custom code which must be executed",
    ),
    "torchserve-unknown-architecture": (
        ARCHITECTURE,
        "ValueError: The checkpoint you are trying to load has model type `foo` but",
    ),
    "torchserve-vllm-context-too-long": (
        TOO_LONG,
        "Value error, User-specified max_model_len (16384) is greater than the derived",
    ),
    "transformers-config-not-json": (
        NO_CONFIG,
        "OSError: It looks like the config file at 'weights/config.json' is not a valid",
    ),
    "transformers-model-truncated": (
        BROKEN,
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing",
    ),
    "transformers-no-config": (
        NO_CONFIG,
        "ValueError: Unrecognized model in weights. Should have a `model_type` key in",
    ),
    "transformers-no-flash-attention": (
        PACKAGE,
        "ImportError: FlashAttention2 has been toggled on, but it cannot be used due to",
    ),
    "transformers-no-package": (PACKAGE, "ModuleNotFoundError: No module named 'starlette'"),
    "transformers-no-permission": (
        NO_WEIGHTS,
        "FileNotFoundError: No such file or directory: weights/model.safetensors",
    ),
    "transformers-no-tokenizer": (
        NO_TOKENIZER,
        "ValueError: Unrecognized processing class in weights. Can't instantiate a",
    ),
    "transformers-no-weights": (
        NO_WEIGHTS,
        "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in",
    ),
    "transformers-out-of-memory": (MEMORY, "RuntimeError: unable to mmap 269060552 bytes from file"),
    "transformers-port-taken": (PORT, "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1',"),
    "transformers-remote-code": (
        OWN_CODE,
        "ValueError: The repository weights contains custom code which must be executed",
    ),
    "transformers-unknown-architecture": (
        ARCHITECTURE,
        "ValueError: The checkpoint you are trying to load has model type `foo` but",
    ),
    "transformers-unknown-class": (ARCHITECTURE, "AttributeError: module transformers has no attribute FooForCausalLM"),
    "triton-broken-backend": (BACKEND, "Not found: unable to load shared library:"),
    "triton-context-too-long": (TOO_LONG, "ValueError: max_context is 16384, but the model's limit is 8192"),
    "triton-little-shared-memory": ("there is too little shared memory", "Unable to initialize shared memory key"),
    "triton-model-truncated": (BROKEN, "SafetensorError: Error while deserializing header: incomplete metadata, file"),
    "triton-no-backend": (BACKEND, "Invalid argument: unable to find backend library for backend 'python', try"),
    "triton-no-config": (NO_CONFIG, "ValueError: Unrecognized model in /model. Should have a `model_type` key in"),
    "triton-no-libpython": (
        "Python's shared library, which Triton embeds, is missing",
        "/state/run/backends/python/triton_python_backend_stub: error while loading",
    ),
    "triton-no-package": (PACKAGE, "ModuleNotFoundError: No module named 'nosuchpackage'"),
    "triton-no-permission": (NO_WEIGHTS, "FileNotFoundError: No such file or directory: /model/model.safetensors"),
    "triton-no-tokenizer": (NO_TOKENIZER, "ValueError: Couldn't instantiate the backend tokenizer from one of:"),
    "triton-no-weights": (NO_WEIGHTS, "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in"),
    "triton-out-of-memory": (MEMORY, "RuntimeError: unable to mmap 269060552 bytes from file"),
    "triton-port-taken": (PORT, "failed to start HTTP service: Unavailable - Socket '127.0.0.1:18765' already"),
    "triton-remote-code": (OWN_CODE, "ValueError: The repository /model contains custom code which must be executed"),
    "triton-unknown-architecture": (
        ARCHITECTURE,
        "ValueError: The checkpoint you are trying to load has model type `foo` but",
    ),
    "triton-unknown-flag": (FLAG, ""),
    "vllm-bad-chat-template": (TEMPLATE, "vllm.exceptions.VLLMValidationError: The supplied chat template string"),
    "vllm-cache-too-large": (
        "its KV cache is to be larger than the memory that is free",
        "ValueError: Available memory on node 0 (12.03/13.59 GiB) on kv cache",
    ),
    "vllm-cache-too-small": (
        "the memory for its KV cache does not hold one context of that length",
        "ValueError: To serve at least one request with the model's max seq len (2048),",
    ),
    "vllm-context-too-long": (
        TOO_LONG,
        "Value error, User-specified max_model_len (16384) is greater than the derived",
    ),
    "vllm-disk-full": ("a disk is full", "<built-in>: fatal error: when writing output to"),
    "vllm-hub-offline": (
        "it wants something from the model hub, and engines are kept offline",
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate",
    ),
    "vllm-model-garbage": (BROKEN, "MemoryError"),
    "vllm-model-truncated": (BROKEN, "safetensors._safetensors_rust.SafetensorError: Error while deserializing"),
    "vllm-no-compiler": (
        "it wants to compile, and there is no C++ compiler",
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler",
    ),
    "vllm-no-config": (NO_CONFIG, "Value error, Invalid repository ID or local directory specified: '/model'."),
    "vllm-no-package": (PACKAGE, "ImportError: Error while finding module specification for"),
    "vllm-no-permission": (FORBIDDEN, "PermissionError: [Errno 13] Permission denied: '/model/model.safetensors'"),
    "vllm-no-tokenizer": (NO_TOKENIZER, "ValueError: Couldn't instantiate the backend tokenizer from one of:"),
    "vllm-no-weights": (NO_WEIGHTS, "RuntimeError: Cannot find any model weights with `/model`"),
    "vllm-out-of-memory": (MEMORY, "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0."),
    "vllm-port-taken": (PORT, "OSError: [Errno 98] Address already in use"),
    "vllm-remote-code": (OWN_CODE, "Value error, The repository /model contains custom code which must be executed"),
    "vllm-unknown-architecture": (
        ARCHITECTURE,
        "Value error, Model architectures ['FooForCausalLM'] are not supported for now.",
    ),
    "vllm-unknown-flag": (FLAG, "serve.py: error: unrecognized arguments: --bogus"),
    "vllm-unknown-model-type": (
        ARCHITECTURE,
        "Value error, The checkpoint you are trying to load has model type `foo` but",
    ),
}
#: log → what is said where no signature knows the fault
UNKNOWN = {
    "triton-invalid-config": (
        "StrictDataclassClassValidationError: Class validation error for validator 'validate_architecture':"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_cause_is_named_with_the_line_that_says_it(name: str) -> None:
    cause, line = FAULTS[name]
    known = next(signature for signature in SIGNATURES if signature.cause == cause)

    log = evidence(LOGS / f"{name}.log")
    verdict = explain(1, log)

    assert verdict.sentence.startswith(f"exited 1: {cause} ({line}")
    assert verdict.sentence.endswith(f"); {known.remedy}")
    assert verdict.permanent is (cause != PORT)
    assert hint(log) == verdict.sentence.removeprefix("exited 1: ")  # and so it is called while it hangs


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_in_the_log_of_a_healthy_start_is_a_cause(engine: str) -> None:
    log = evidence(LOGS / f"{engine}-healthy.log")

    assert len(log) > 10
    assert explain(1, log) == Diagnosis("exited 1", permanent=False)
    assert hint(log) == ""


def test_every_log_is_looked_at() -> None:
    looked_at = {*FAULTS, *UNKNOWN, *(f"{engine}-healthy" for engine in ENGINES)}

    assert {file.stem for file in LOGS.iterdir()} == looked_at


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_is_told_in_the_engines_words_and_tried_again(name: str) -> None:
    log = evidence(LOGS / f"{name}.log")

    assert explain(1, log) == Diagnosis(f"exited 1: {UNKNOWN[name]}", permanent=False)
    assert hint(log) == ""


def test_remedies_name_keys_that_there_are() -> None:
    options = (field for name in registry.names("engine") for field in _fields(registry.engine_class(name).Options))
    known = {
        "engine": {*_fields(EngineConf), *options},
        "model": _fields(ModelConf),
        "device": _fields(DeviceConf),
        "supervise": _fields(SuperviseConf),
    }
    named = [
        key for known in SIGNATURES for key in re.findall(r"\b(engine|model|device|supervise)\.(\w+)", known.remedy)
    ]

    assert len(named) > 20
    assert [f"{group}.{key}" for group, key in named if key not in known[group]] == []


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
