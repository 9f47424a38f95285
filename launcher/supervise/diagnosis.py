"""The cause of an engine's end in one plain sentence, and a remedy: signatures as data, matched against its log."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.runtimes.base import UNSEEN


@dataclass(frozen=True, slots=True)
class Signature:
    """One known cause, and the words in a log that tell of it."""

    #: a regular expression for the log without its decoration (`_plain`); the line in which the match ends is quoted.
    #: As the programs write it: letters of either case would take ten times as long, and a restart waits.
    pattern: str
    cause: str
    remedy: str
    permanent: bool = True  #: starting it again cannot help
    shortage: bool = False  #: of what others take as well: for one that has served here, starting it again can help


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause of one end. `permanent`: starting the program again cannot help."""

    sentence: str
    permanent: bool


_WINDOW = 1 << 16  #: bytes at the end of a log; several ranks write a traceback each after the one with the cause
_RECENT = 100  #: lines of a program that has served; what is older may be about requests
_LONGEST_LINE = 2000
_LONGEST_QUOTE = 200

#: the first whose line is anywhere in the log wins, so the specific ones stand first, and last those that follow from
#: another
SIGNATURES = (
    Signature(r"[Aa]ddress already in use|failed to start \w+ service: Unavailable|couldn't bind \w+ server socket",
              "its port is taken", "choose another port, or leave it out",
              permanent=False),  # the last connections of a stopped server can hold it for a moment
    Signature(r"Driver/library version mismatch",
              "NVIDIA's driver was updated while the old one was still loaded", "restart the machine"),
    Signature(r"CUDA driver version is insufficient|NVIDIA driver on your system is too old",
              "NVIDIA's driver is older than the packages in its environment need",
              "update the driver, or pin older packages in engine.environments.<device>.requirements"),
    Signature(r"Found no NVIDIA driver|No CUDA GPUs are available|sees no GPU|libcuda\.so\S*: cannot open shared",
              "it finds no usable GPU", "see that `nvidia-smi` lists it, check device.ids, or use device=cpu",
              shortage=True),  # a driver that is being reset shows none for a while
    Signature(r"no kernel image is available for execution on the device",
              "its packages are not built for this GPU",
              "choose others in engine.environments.<device>.requirements"),
    Signature(r"is less than desired GPU memory utilization",
              "others hold memory of the GPU that it wants", "free the GPU, or lower engine.gpu_memory_utilization",
              permanent=False),  # it may be another engine that is about to end
    Signature(r"CUDA out of memory|CUDA error: out of memory|cudaMalloc failed: out of memory",
              "the GPU's memory is full", "free the GPU, lower model.context_length, or take more with device.count",
              shortage=True),
    Signature(r"KV cache is needed, which is larger|No available memory for the cache blocks",
              "the memory for its KV cache does not hold one context of that length",
              "lower model.context_length, or raise engine.gpu_memory_utilization (with device=cpu: "
              "engine.args.kv_cache_memory_bytes)", shortage=True),
    Signature(r"kv cache allocation is less than requested|less than desired CPU memory utilization",
              "its KV cache is to be larger than the memory that is free",
              "lower engine.args.kv_cache_memory_bytes or engine.gpu_memory_utilization", shortage=True),
    Signature(r"Unable to initialize shared memory key|unable to open shared memory object",
              "there is too little shared memory",
              "make /dev/shm larger (mount -o remount,size=8g /dev/shm; of a container, --shm-size)", shortage=True),
    Signature(r"No space left on device", "a disk is full",
              "free space where the state and cache folders and TMPDIR are", shortage=True),
    Signature(r"OutOfMemoryError: Java heap space|Too small (?:initial|maximum) heap",
              "Java's heap is too small", "raise engine.heap_mb"),
    # vLLM takes the first bytes of a file that is something else for the length of what follows.
    Signature(r"in parse_safetensors_file_metadata\nMemoryError$|is not a GGUF file|model is corrupted or incomplete|"
              r"deserializing header|gguf_init_from_\w+: failed to read",
              "the model's file cannot be read", "check model.source and model.format; fetch it again"),
    Signature(r"std::bad_alloc|Cannot allocate memory|^MemoryError\b|DefaultCPUAllocator: can't allocate memory|"
              r"insufficient memory|Could not allocate compressed class space",
              "the machine's memory is full", "use a smaller model or a shorter model.context_length", shortage=True),
    Signature(r"can't start new thread|unable to create native thread",
              "it may not start another thread",
              "raise the limit of processes (ulimit -u; of a container, runtime.pids)",
              permanent=False),  # others under the same limit may end
    Signature(r"libpython3\.\d+\.so\S*: cannot open shared object",
              "Python's shared library, which Triton embeds, is missing",
              "install it (Debian: apt-get install libpython3.11, of the environment's version)"),
    Signature(r"libgomp\.so\S*: cannot open shared object",
              "OpenMP's library, which llama.cpp uses, is missing", "install it (Debian: apt-get install libgomp1)"),
    Signature(r"\.so[.\d]*: cannot open shared object",
              "a shared library is missing", "install the package that has it"),
    Signature(r"Fatal Python error: (?:Segmentation fault|Bus error|Illegal instruction|Aborted|Floating)",
              "native code in it crashed, of a library that computes the model",
              "check that driver, runtime library and compiled model belong together; the log has the call",
              permanent=False),  # it may have been a request
    Signature(r"LibraryError: ", "the library that computes the model refused it",
              "check device.sdk.runtime, the driver and the model's file", permanent=False),
    Signature(r"No such file or directory: '(?:\S*/)?java'",
              "there is no such Java", "check engine.program, or leave it out for the one in its environment"),
    Signature(r"No working C\+\+ compiler found|Failed to find C compiler",
              "it wants to compile, and there is no C++ compiler",
              "install one (Debian: apt-get install g++), or set engine.enforce_eager=true"),
    Signature(r"returned non-zero exit status 127",
              "a program that it starts is missing", "install the package that has it"),
    Signature(r"No module named '?[\w.]+|doesn't seem to be installed",
              "a Python package is missing in its environment", "add it to engine.environments.<device>.requirements"),
    Signature(r"unrecognized arguments?:|error: invalid argument:|unrecognized option",
              "it does not know one of its flags", "check engine.args"),
    Signature(r"Cannot access gated repo|trying to access a gated repo|is not a valid model identifier|"
              r"\b40[13] Client Error",
              "the model hub does not give the model to you",
              "accept its licence on the hub and set HF_TOKEN, or download it and use model.source=file:/path"),
    Signature(r"outgoing traffic has been disabled|offline mode is enabled|couldn't connect to 'https://huggingface",
              "it wants something from the model hub, and engines are kept offline",
              "give a folder in place of a name of the hub, or set engine.env.HF_HUB_OFFLINE=0"),
    Signature(r"contains custom code which must be executed",
              "the model brings Python code of its own, which is not run",
              "if you trust it, set engine.trust_remote_code=true (engine=vllm) or engine.args.trust_remote_code=true "
              "(engine=transformers)"),
    Signature(r"are not supported for now|does not recognize this architecture|unknown model architecture|"
              r"module transformers has no attribute|Unrecognized configuration class",
              "this engine does not know the model's architecture",
              "use another engine, or a newer version of it in engine.environments.<device>.requirements"),
    Signature(r"Should have a `model_type` key|Invalid repository ID or local directory|file named config\.json|"
              r"is not a valid JSON file",
              "the model's folder has no config.json that can be read",
              "check that model.source is the folder of a Hugging Face model, and whole"),
    # safetensors says so too of a file that it may not read
    Signature(r"[Nn]o file named (?:model|pytorch_model)|Cannot find any model weights|"
              r"No such file or directory: \S+\.safetensors|does not appear to have a file named",
              "the model's folder has no weights that it may read",
              "check that all files of model.source are there, and that your user may read them"),
    Signature(r"Permission denied|PermissionError",
              "it may not open a file", "let your user read the model's files, and write where it writes"),
    Signature(r"instantiate the backend tokenizer|Unrecognized processing class|Can't load tokenizer|"
              r"Unable to load vocabulary",
              "the model's folder has no tokenizer", "put tokenizer.json and tokenizer_config.json into it"),
    Signature(r"chat template string .* doesn't exist|failed to initialize chat template|"
              r"chat template parsing error|supplied chat template is not supported",
              "its chat template cannot be used",
              "check engine.chat_template (engine=vllm) or engine.args.chat_template (engine=llamacpp)"),
    Signature(r"is greater than the derived max_model_len|max_context is \d+, but the model's limit is",
              "model.context_length is longer than the model can", "lower it"),
    Signature(r"conflicts with the compiled prefill_chunk_size|Cannot set tensor_parallel_size on the optimum|"
              r"additional_config takes only|`block_size` is required to run|vllm model path is not supported on",
              "vllm-rbln refuses one of its settings", "check engine.args and engine.model_impl"),
    Signature(r"Please recompile the model|compiled with (?:newer|older) version|was originally compiled using",
              "the model was compiled for another version of vllm-rbln",
              "compile it again: give the weights it was made from as model.source"),
    Signature(r"No available devices found",
              "no NPU is free", "see with `furiosa-smi ps` who uses them, or choose others with device.ids",
              permanent=False),
    Signature(r"unable to find backend library|unable to load shared library|unexpected platform",
              "this tritonserver has not the backend that the model needs",
              "check engine.backend_directory, engine.program and engine.backend"),
    Signature(r"\[FATAL tini \(\d+\)\] exec \S+ failed: No such file or directory",
              "the image has no such program", "check engine.program, engine.layouts and the image"),
    Signature(r"failed to load model",
              "the model cannot be loaded", "check model.source and model.format"),
)  # fmt: skip

#: what the engines' loggers put before a message
_PREFIX = re.compile(
    r"[EF]\d{4} \S+ \d+ \S+:\d+\] \"?|"  # Triton
    r"\| \S+ +\| \d+ +\| (?:UNAVAILABLE: )?(?:Internal: )?|"  # its table of models
    r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ +\w+ |"  # TorchServe
    r"\d+(?:\.\d+){3} [A-Z] |"  # llama.cpp
    r"(?:\(\w+ pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d [\d:]+ \[\S+\] )?"  # vLLM
)
#: what they call information or a warning. TorchServe does so with whatever its workers write.
_HARMLESS = re.compile(r"[IW]\d{4} |\[W\d{4} |(?:\(\w+ pid=\d+\) )?(?:INFO|WARNING)\b|\d+(?:\.\d+){3} [IW] ")
#: what says why where no signature knows it; not what only sends the reader upwards
_ERROR = (
    r"^(?:(?:[\w.$]+(?:Error|Exception)|error): (?!.*(?:[Ss]ee .*(?:above|cause)|load all models))|"
    r"failed to load '\S+' ).+"
)

_OUT_OF_MEMORY = (
    "the kernel killed {whom} because memory had run out; use a smaller model or a shorter model.context_length, or "
    "give it more memory"
)
_SIGNALS = {
    signal.SIGKILL: ("somebody killed it (SIGKILL)", False),
    signal.SIGILL: ("it used an instruction that this processor lacks (SIGILL); use a build for this processor", True),
    signal.SIGSEGV: ("it crashed (SIGSEGV)", False),
    signal.SIGBUS: ("its memory went (SIGBUS): /dev/shm is full, or the model's file was cut short in use", False),
    signal.SIGTERM: ("somebody ended it (SIGTERM)", False),
}


def explain(
    exit_code: int, log: Sequence[str], starting: bool = True, out_of_memory: bool = False, served: bool = False
) -> Diagnosis:
    """Return the cause for a program that ended with `exit_code` and wrote `log` (its last lines).

    `out_of_memory` says that the kernel has killed somebody for memory since the program was started, and `served` that
    an earlier start of it has served here.

    A cause is permanent only where it was found while `starting`: an engine that has served once can serve again, and
    what it logs meanwhile may be a client's words. Nor does its log say why somebody else's signal ended it.
    """
    ended = _ended(exit_code)
    if exit_code == -signal.SIGKILL and out_of_memory:
        return Diagnosis(_OUT_OF_MEMORY.format(whom="it"), permanent=False)
    if exit_code < 0 and -exit_code in _SIGNALS:
        sentence, permanent = _SIGNALS[signal.Signals(-exit_code)]
        return Diagnosis(sentence, permanent and starting)
    text = _plain(log if starting else log[-_RECENT:])
    if found := _known(text):
        known, words = found
        return Diagnosis(f"{ended}: {words}", starting and known.permanent and not (served and known.shortage))
    if out_of_memory:  # of its workers perhaps, whose end it did not survive
        return Diagnosis(f"{ended}, after {_OUT_OF_MEMORY.format(whom='a process')}", permanent=False)
    if quote := _last(_ERROR, text):
        return Diagnosis(f"{ended}: {quote}", permanent=False)
    return Diagnosis(ended, permanent=False)


def evidence(log: Path) -> list[str]:
    """The last lines of `log` for `explain`: more than a person reads, and whole."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _WINDOW))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def hint(log: Sequence[str]) -> str:
    """Cause and remedy of a program that still runs, but does not get anywhere; empty where none is known."""
    found = _known(_plain(log))
    return found[1] if found else ""


def _known(text: str) -> tuple[Signature, str] | None:
    """The first signature that is in `text`, and its cause, quoted line and remedy in words."""
    for known in SIGNATURES:
        if quote := _last(known.pattern, text):
            return known, f"{known.cause} ({quote}); {known.remedy}"
    return None


def _plain(log: Sequence[str]) -> str:
    """Return the messages that may say a cause, each as it would stand on a terminal of its own.

    Left out are the decorations of loggers, lines that are no error by their own words, and source lines in tracebacks.
    """
    lines = (line[:_LONGEST_LINE] for line in log)
    bare = (_PREFIX.sub("", line, count=1) for line in lines if not _HARMLESS.match(line))
    return "\n".join(line.rstrip(' |"') for line in bare if not line.startswith("    "))


def _last(pattern: str, text: str) -> str:
    """The line in which the last match of `pattern` ends, cut to what is readable; empty where there is none."""
    found = None
    for found in re.finditer(pattern, text, re.MULTILINE):  # noqa: B007
        pass
    if found is None:
        return ""
    begin = text.rfind("\n", 0, found.end()) + 1
    line = text[begin:].partition("\n")[0]
    if found.end() - begin > _LONGEST_QUOTE:
        line = "…" + line[found.start() - begin :]
    words = line.partition(r"\n")[0].split()  # Triton writes a message of several lines in one
    return "".join(c for c in " ".join(words)[:_LONGEST_QUOTE] if c.isprintable())


def _ended(exit_code: int) -> str:
    if exit_code == UNSEEN:
        return "it ended, and nobody saw its exit code"
    if exit_code >= 0:
        return f"exited {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:  # of the real-time signals only the first and the last have a name
        return f"ended by signal {-exit_code}"
