"""Triton model repositories as text: config.pbtxt and what stands beside it, complete without auto-complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engines.base import PlanError, ServeSpec

#: name, type, optional: as Triton's vLLM backend declares them; `messages` is ours and only in the Python model
_INPUTS = (
    ("text_input", "TYPE_STRING", True),
    ("messages", "TYPE_STRING", True),
    ("stream", "TYPE_BOOL", True),
    ("sampling_parameters", "TYPE_STRING", True),
    ("exclude_input_in_output", "TYPE_BOOL", True),
    ("return_finish_reason", "TYPE_BOOL", True),
    ("return_num_input_tokens", "TYPE_BOOL", True),
    ("return_num_output_tokens", "TYPE_BOOL", True),
)
_OUTPUTS = (
    ("text_output", "TYPE_STRING"),
    ("finish_reason", "TYPE_STRING"),
    ("num_input_tokens", "TYPE_UINT32"),
    ("num_output_tokens", "TYPE_UINT32"),
)


@dataclass(frozen=True, slots=True)
class Repository:
    """One model's part of the repository; paths are below the plan's `run_dir`."""

    files: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)


def python_model(spec: ServeSpec) -> Repository:
    """The model in Triton's Python backend: templates/triton/generate.py, or the user's own handler."""
    if spec.device.kind == "gpu" and spec.device.count > 1:
        raise PlanError(
            f"engine.backend=python uses one GPU, but device.ids={list(spec.device.ids)}; give one, or use "
            "engine.backend=vllm"
        )
    handler = spec.templates["handler"] if spec.options["handler"] else spec.templates["generate.py"]
    parameters = {
        "model_path": spec.model.path,
        "device": "cuda" if spec.device.kind == "gpu" else "cpu",
        "dtype": spec.model.dtype,
        "max_context": str(spec.model.context_length),
        "workers": str(spec.options["workers"]),
    }
    folder = f"models/{spec.model.id}"
    return Repository(
        files={
            f"{folder}/config.pbtxt": _python_config(spec, parameters),
            f"{folder}/1/model.py": handler,
            f"{folder}/1/decoding.py": spec.templates["decoding.py"],
        },
        links=_backend_links(spec) if not spec.options["backend_directory"] else {},
    )


def _backend_links(spec: ServeSpec) -> Mapping[str, str]:
    """The Python backend as Triton looks for it, with the stub that is built for the environment's Python.

    nvidia-pytriton ships the stubs beside the backend. A stub in the model's own folder is found too late: the load
    fails before it when the backend's folder has none.
    """
    wheel = f"{spec.environment.site_packages}/pytriton/tritonserver"
    stub = f"python_backend_stubs/{spec.environment.python}/triton_python_backend_stub"
    return {
        "backends/python/libtriton_python.so": f"{wheel}/backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py": f"{wheel}/backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub": f"{wheel}/{stub}",
    }


def vllm_model(spec: ServeSpec) -> Repository:
    """The model in Triton's vLLM backend; model.json is `AsyncEngineArgs(**json)`, where an unknown key is an error."""
    engine_args: dict[str, object] = {"model": spec.model.path}
    if spec.device.kind == "rbln":
        # A compiled folder is the truth about everything else. Named again, tensor_parallel_size and
        # max_num_batched_tokens are errors in vllm-rbln 0.12, and `device` is no engine argument any more.
        _check_rbln(spec)
        engine_args["max_num_seqs"] = spec.model.batch_size or 1
    else:
        engine_args |= {"max_model_len": spec.model.context_length, "dtype": spec.model.dtype}
        engine_args["tensor_parallel_size"] = spec.device.count
        if spec.options["max_num_seqs"]:
            engine_args["max_num_seqs"] = spec.options["max_num_seqs"]
    # KIND_MODEL: with KIND_GPU the backend itself would set CUDA_VISIBLE_DEVICES.
    config = _text(
        'backend: "vllm"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *_tensors("input", [(name, kind, optional) for name, kind, optional in _INPUTS if name != "messages"]),
        *_tensors("output", [(name, kind, False) for name, kind in _OUTPUTS]),
        "instance_group [ { count: 1 kind: KIND_MODEL } ]",
    )
    folder = f"models/{spec.model.id}"
    return Repository({f"{folder}/config.pbtxt": config, f"{folder}/1/model.json": json.dumps(engine_args) + "\n"})


def _check_rbln(spec: ServeSpec) -> None:
    if spec.options["max_num_seqs"]:
        raise PlanError(
            "engine.max_num_seqs does nothing on device=rbln: the compiled artifact fixes it; set "
            "model.build.rbln.batch_size"
        )


def _python_config(spec: ServeSpec, parameters: Mapping[str, str]) -> str:
    # The visible GPU is number 0, whichever it is.
    instances = "KIND_GPU gpus: [ 0 ]" if spec.device.kind == "gpu" else "KIND_CPU"
    return _text(
        f'name: "{spec.model.id}"',
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *_tensors("input", _INPUTS),
        *_tensors("output", [(name, kind, False) for name, kind in _OUTPUTS]),
        f"instance_group [ {{ count: 1 kind: {instances} }} ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
          for key, value in parameters.items()),
    )  # fmt: skip


def _tensors(what: str, tensors: Sequence[tuple[str, str, bool]]) -> list[str]:
    return [
        f'{what} {{ name: "{name}" data_type: {kind} dims: [ 1 ]{" optional: true" if optional else ""} }}'
        for name, kind, optional in tensors
    ]


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"
