"""llama-server's command line, served by xllamacpp: llama.cpp without a compiler.

    python server.py --model model.gguf --alias name --host 127.0.0.1 --port 8080 --ctx-size 4096

This file runs inside the engine's own environment, which holds xllamacpp and nothing else. The flags are
llama-server's, so a launcher can put a `llama-server` binary in its place and change nothing else.
xllamacpp carries llama.cpp's server but keeps its argument parser to itself, so the flags that
its `CommonParams` can express are listed below; any other is refused by name. Of llama-server's
environment variables only LLAMA_API_KEY is read.

On a stop signal, with --metrics, it finishes the requests that it has and then ends; a second signal ends it at once.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 the server could not start, 2 a bad command line.
A signal that comes while the model loads ends the process at once, by that signal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.02
LOOKS = 4

Convert = Callable[[str], object]


class StartError(Exception):
    """The server cannot start; the message is the one line that the user sees."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of one of xllamacpp's enums, by name: parsing needs no native library."""

    enum: str
    name: str


def _one_of(enum: str, prefix: str, names: str) -> Convert:
    def convert(text: str) -> Member:
        if text not in names.split():
            raise argparse.ArgumentTypeError(f"{text!r} is not one of: {names}")
        return Member(enum, f"{prefix}_{text.upper()}")

    return convert


def _flash_attn(text: str) -> Member:
    names = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of: on off auto")
    return Member("llama_flash_attn_type", f"LLAMA_FLASH_ATTN_TYPE_{names[text]}")


def _gpu_layers(text: str) -> int:
    return {"auto": -1, "all": -2}.get(text) or int(text)


def _threads(text: str) -> int:
    """Return the count; 0 and less are as many as this process may use, as in llama-server."""
    return int(text) if int(text) > 0 else len(os.sched_getaffinity(0))


def _port(text: str) -> int:
    if not 0 <= int(text) <= 65535:  # llama.cpp takes 99999 and listens on 34463
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return int(text)


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of: on off")
    return text == "on"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return text.rstrip("/") + "/"  # llama.cpp appends the file's name without a separator


def _file_text(text: str) -> str:
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {exc}") from exc


def _key_file(text: str) -> list[str]:
    lines = (line.strip() for line in _file_text(text).splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        # An empty list would mean a server without authentication, which nobody asked for.
        raise argparse.ArgumentTypeError(f"no key in {text!r}")
    return keys


def _json_object(text: str) -> dict[str, str]:
    """Parse a JSON object; each value stays JSON text, as CommonParams.default_template_kwargs holds it."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as exc:
        raise argparse.ArgumentTypeError(f"not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return {str(key): json.dumps(value) for key, value in found.items()}


def _types(names: str) -> Convert:
    def convert(text: str) -> Member:
        if text not in names.split():
            raise argparse.ArgumentTypeError(f"{text!r} is not one of: {names}")
        # bf16 is GGML_TYPE_BF16, and q8_0 GGML_TYPE_Q8_0.
        return Member("ggml_type", f"GGML_TYPE_{text.upper()}")

    return convert


_pooling = _one_of("llama_pooling_type", "LLAMA_POOLING_TYPE", "none mean cls last rank")
_split = _one_of("llama_split_mode", "LLAMA_SPLIT_MODE", "none layer row")
_rope = _one_of("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE", "none linear yarn")
_kv_type = _types("f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1")
_reasoning = _one_of("common_reasoning_format", "COMMON_REASONING_FORMAT", "none auto deepseek")

#: llama-server's spellings → the CommonParams attributes that they set, and the conversion.
VALUES: Mapping[str, tuple[str, Convert]] = {
    "-m --model": ("model.path", str),
    "-mm --mmproj": ("mmproj.path", str),
    "--host": ("hostnames", _names),
    "--port": ("port", _port),
    "--api-prefix": ("api_prefix", str),
    "-to --timeout": ("timeout_read timeout_write", int),
    "--threads-http": ("n_threads_http", int),
    "--sse-ping-interval": ("sse_ping_interval", int),
    "--cors-origins": ("cors_origins", str),
    "--ssl-key-file": ("ssl_file_key", str),
    "--ssl-cert-file": ("ssl_file_cert", str),
    "-c --ctx-size": ("n_ctx", int),
    "-np --parallel": ("n_parallel", int),
    "-n --predict --n-predict": ("n_predict", int),
    "-b --batch-size": ("n_batch", int),
    "-ub --ubatch-size": ("n_ubatch", int),
    "--keep": ("n_keep", int),
    "-t --threads": ("cpuparams.n_threads", _threads),
    "-tb --threads-batch": ("cpuparams_batch.n_threads", _threads),
    "-ngl --gpu-layers --n-gpu-layers": ("n_gpu_layers", _gpu_layers),
    "-sm --split-mode": ("split_mode", _split),
    "-mg --main-gpu": ("main_gpu", int),
    "-fit --fit": ("fit_params", _on_off),
    "-fitc --fit-ctx": ("fit_params_min_ctx", int),
    "-fa --flash-attn": ("flash_attn_type", _flash_attn),
    "-ctk --cache-type-k": ("cache_type_k", _kv_type),
    "-ctv --cache-type-v": ("cache_type_v", _kv_type),
    "-cram --cache-ram": ("cache_ram_mib", int),
    "--cache-reuse": ("n_cache_reuse", int),
    "-sps --slot-prompt-similarity": ("slot_prompt_similarity", float),
    "--slot-save-path": ("slot_save_path", _folder),
    "--sleep-idle-seconds": ("sleep_idle_seconds", int),
    "--rope-scaling": ("rope_scaling_type", _rope),
    "--rope-freq-base": ("rope_freq_base", float),
    "--rope-freq-scale": ("rope_freq_scale", float),
    "--yarn-orig-ctx": ("yarn_orig_ctx", int),
    "--pooling": ("pooling_type", _pooling),
    "--embd-normalize": ("embd_normalize", int),
    "--chat-template": ("chat_template", str),
    "--chat-template-file": ("chat_template", _file_text),
    "--chat-template-kwargs": ("default_template_kwargs", _json_object),
    "--reasoning-format": ("reasoning_format", _reasoning),
    "-s --seed": ("sampling.seed", int),
    "--temp --temperature": ("sampling.temp", float),
    "--top-k": ("sampling.top_k", int),
    "--top-p": ("sampling.top_p", float),
    "--min-p": ("sampling.min_p", float),
    "--repeat-last-n": ("sampling.penalty_last_n", int),
    "--repeat-penalty": ("sampling.penalty_repeat", float),
    "--presence-penalty": ("sampling.penalty_present", float),
    "--frequency-penalty": ("sampling.penalty_freq", float),
    "-lv --verbosity --log-verbosity": ("verbosity", int),
}

#: Flags without a value: spellings → the attribute and what they set it to.
SWITCHES: Mapping[str, tuple[str, bool]] = {
    "--embedding --embeddings": ("embedding", True),
    "--jinja": ("use_jinja", True),
    "--no-jinja": ("use_jinja", False),
    "--warmup": ("warmup", True),
    "--no-warmup": ("warmup", False),
    "--metrics": ("endpoint_metrics", True),
    "--props": ("endpoint_props", True),
    "--slots": ("endpoint_slots", True),
    "--no-slots": ("endpoint_slots", False),
    "--ui --webui": ("ui", True),
    "--no-ui --no-webui": ("ui", False),
    "-cb --cont-batching": ("cont_batching", True),
    "-nocb --no-cont-batching": ("cont_batching", False),
    "-kvu --kv-unified": ("kv_unified", True),
    "-no-kvu --no-kv-unified": ("kv_unified", False),
    "--cache-prompt": ("cache_prompt", True),
    "--no-cache-prompt": ("cache_prompt", False),
    "--context-shift": ("ctx_shift", True),
    "--no-context-shift": ("ctx_shift", False),
    "-kvo --kv-offload": ("no_kv_offload", False),
    "-nkvo --no-kv-offload": ("no_kv_offload", True),
    "--repack": ("no_extra_bufts", False),
    "-nr --no-repack": ("no_extra_bufts", True),
    "--swa-full": ("swa_full", True),
    "--check-tensors": ("check_tensors", True),
    "--reuse-port": ("reuse_port", True),
    "--offline": ("offline", True),
    "-sp --special": ("special", True),
}

#: llama-server's defaults that CommonParams does not share (there n_parallel is 1, and port 0).
DEFAULTS: Mapping[str, object] = {"hostnames": ["127.0.0.1"], "port": 8080, "n_parallel": -1}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "server.py",
        usage="%(prog)s --model FILE [llama-server's flags; --help lists those supported]",
        description="llama-server on xllamacpp",
        allow_abbrev=False,  # llama-server has none, and "--no" would be anybody's guess
        argument_default=argparse.SUPPRESS,
    )
    for spellings, (attribute, convert) in VALUES.items():
        parser.add_argument(*spellings.split(), dest=attribute, type=convert, metavar="VALUE")
    for spellings, (attribute, value) in SWITCHES.items():
        parser.add_argument(*spellings.split(), dest=attribute, action="store_const", const=value)
    parser.add_argument("-a", "--alias", dest="model_alias", type=_names, metavar="NAMES")
    parser.add_argument("--rerank", "--reranking", dest="rerank", action="store_true")
    for flag, keys in (("--api-key", _names), ("--api-key-file", _key_file)):
        parser.add_argument(flag, dest="api_keys", action="extend", type=keys, metavar="VALUE")
    return parser


def parse(argv: Sequence[str]) -> dict[str, object]:
    """Turn llama-server's flags into values for CommonParams, keyed by dotted attribute."""
    parser = _parser()
    found: dict[str, object] = vars(parser.parse_args(argv))
    if "model.path" not in found:
        parser.error("--model is required")
    if "api_keys" not in found and (keys := os.environ.get("LLAMA_API_KEY")):  # as llama-server reads it
        found["api_keys"] = _names(keys)
    if found.get("api_keys") == []:
        parser.error("--api-key: no key given")
    if found.pop("rerank", False):
        found["embedding"] = True
        found["pooling_type"] = Member("llama_pooling_type", "LLAMA_POOLING_TYPE_RANK")
    if "cpuparams.n_threads" in found:
        found.setdefault("cpuparams_batch.n_threads", found["cpuparams.n_threads"])
    settings = {**DEFAULTS, **found}
    # llama-server's parser adds this template variable by itself.
    kwargs = found.get("default_template_kwargs", {})
    assert isinstance(kwargs, dict)
    settings["default_template_kwargs"] = {"preserve_reasoning": "true", **kwargs}
    return settings


def check_model(path: Path) -> None:
    """Refuse a file that is not GGUF: llama.cpp's own message does not reach its caller. Raises `StartError`."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise StartError(f"cannot read the model {str(path)!r}: {exc.strerror}") from exc
    if magic != b"GGUF":
        raise StartError(f"{str(path)!r} is not a GGUF file: it starts with {magic!r}")


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be bound, before the weights are read for nothing."""
    if host.endswith(".sock"):
        return  # llama-server's notation for a UNIX socket
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            # Without it a port whose last connections are in TIME_WAIT would seem taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise StartError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc


def _check_addresses(settings: Mapping[str, object]) -> None:
    hosts, port = settings["hostnames"], settings["port"]
    assert isinstance(hosts, list)
    assert isinstance(port, int)
    if settings.get("reuse_port"):
        return  # sharing the port is what was asked for
    for host in hosts:
        check_address(host, port)


def _params(settings: Mapping[str, object]) -> object:
    import xllamacpp  # not at the top: parsing is tested without the native library

    params = xllamacpp.CommonParams()
    for attributes, value in settings.items():
        if isinstance(value, Member):
            value = getattr(getattr(xllamacpp, value.enum), value.name)
        for attribute in attributes.split():
            owner, _, name = attribute.rpartition(".")
            setattr(getattr(params, owner) if owner else params, name, value)
    return params


def start(settings: Mapping[str, object]) -> Any:
    """Load the model and return the native server, which answers from threads of its own.

    Blocks with the interpreter locked: until it returns no Python signal handler runs. HTTP is
    up before the weights are, and /health answers 503 meanwhile.
    """
    import xllamacpp

    check_model(Path(str(settings["model.path"])))
    _check_addresses(settings)
    try:
        return xllamacpp.Server(_params(settings))
    except (RuntimeError, ValueError) as exc:
        _check_addresses(settings)  # taken between our look and llama.cpp's
        model = str(settings["model.path"])
        raise StartError(f"llama.cpp could not load {model!r}; see its lines above") from exc


def wait_for_signal() -> None:
    """Block until one of `STOP_SIGNALS` arrives."""
    # The kernel may hand the signal to a native thread. Python's C-level handler then writes to
    # this socket, which wakes the main thread wherever the signal arrived.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    reader.recv(1)


def is_busy(server: Any) -> bool:
    """Return whether a request is being answered, over several looks.

    One look may miss it: a request is read before it is counted, and sent after. Without --metrics there is no count,
    and the server passes for idle.
    """
    for _ in range(LOOKS):
        counted = re.findall(
            r"^llamacpp:requests_(?:processing|deferred) (\d+)$", server.handle_metrics(), re.MULTILINE
        )
        if any(map(int, counted)):
            return True
        time.sleep(POLL_S)
    return False


def main(argv: Sequence[str]) -> int:
    """Serve until a signal; return the exit code 1 if the server could not start."""
    # The default action needs no interpreter, so it also works while `start` holds it.
    _default_signals()
    settings = parse(argv)
    try:
        server = start(settings)
    except StartError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    wait_for_signal()
    _default_signals()
    while is_busy(server):
        time.sleep(POLL_S)
    # No orderly teardown: with a generation running, the server's destructor was still waiting
    # after 5 s (xllamacpp 2026.10.11549 stops HTTP, which waits for the reply, before the queue
    # that makes it). Nothing is on disk; the kernel takes back ports and memory.
    os._exit(0)


def _default_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
