"""Triton model repositories as text: config.pbtxt and what stands beside it, complete without auto-complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engines.async_engine_args import engine_args
from engines.backends import check_one_gpu
from engines.base import PlanError, ServeSpec, TensorSpec
from engines.triton_tensors import DATATYPES

#: tensors of a text model, as Triton's vLLM backend declares them; `messages` is ours, in the Python model alone
_INPUTS = (
    ("text_input", "TYPE_STRING"),
    ("messages", "TYPE_STRING"),
    ("stream", "TYPE_BOOL"),
    ("sampling_parameters", "TYPE_STRING"),
    ("exclude_input_in_output", "TYPE_BOOL"),
    ("return_finish_reason", "TYPE_BOOL"),
    ("return_num_input_tokens", "TYPE_BOOL"),
    ("return_num_output_tokens", "TYPE_BOOL"),
)
_OUTPUTS = (
    ("text_output", "TYPE_STRING"),
    ("finish_reason", "TYPE_STRING"),
    ("num_input_tokens", "TYPE_UINT32"),
    ("num_output_tokens", "TYPE_UINT32"),
)

#: task → templates/triton's model.py, and the modules that it imports from there and from templates/models
_SHARED = ("triton_model.py", "bad_request.py", "hugging_face.py")
_MODULES = {
    "generate": ("generate.py", (*_SHARED, "decoding.py", "language_model.py")),
    "embed": ("embed.py", (*_SHARED, "embedding.py")),
    "tensor": ("tensor.py", (*_SHARED, "tensor_model.py", "tensors.py")),
}


@dataclass(frozen=True, slots=True)
class Repository:
    """One model's part of the repository; paths are below the plan's `run_dir`."""

    files: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)


def python_model(spec: ServeSpec) -> Repository:
    """Return the model in Triton's Python backend: a file of templates/triton, or the user's own handler."""
    check_one_gpu(spec)
    name, modules = _MODULES[spec.model.task]
    modules = (*modules, "native.py") if spec.library else modules
    # On RBLN the server is that of NVIDIA's container, which has the backend where it looks for it.
    linked = spec.device.kind != "rbln" and not spec.options["backend_directory"]
    folder = f"models/{spec.model.id}"
    return Repository(
        files={
            f"{folder}/config.pbtxt": _python_config(spec),
            f"{folder}/1/model.py": spec.templates["handler" if spec.options["handler"] else name],
            **{f"{folder}/1/{module}": spec.templates[module] for module in modules},
        },
        links=_backend_links(spec) if linked else {},
    )


def _backend_links(spec: ServeSpec) -> Mapping[str, str]:
    """Return links to the Python backend as Triton looks for it, with the stub for the environment's Python.

    nvidia-pytriton ships the stubs beside the backend. A stub in the model's own folder is found too late: the load
    fails before it if the backend's folder has none.
    """
    wheel = f"{spec.environment.site_packages}/pytriton/tritonserver"
    stub = f"python_backend_stubs/{spec.environment.python}/triton_python_backend_stub"
    return {
        "backends/python/libtriton_python.so": f"{wheel}/backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py": f"{wheel}/backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub": f"{wheel}/{stub}",
    }


def vllm_model(spec: ServeSpec) -> Repository:
    """Return the model in Triton's vLLM backend.

    model.json is `AsyncEngineArgs(**json)`, where an unknown key is an error.
    """
    seqs = spec.options["max_num_seqs"]
    wanted, keys = {"max_num_seqs": seqs}, {"max_num_seqs": "engine.max_num_seqs"}
    args = engine_args(spec.model, spec.device, wanted, keys)
    # KIND_MODEL: with KIND_GPU the backend itself would set CUDA_VISIBLE_DEVICES.
    config = _text(
        'backend: "vllm"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *(_tensor("input", name, kind, (1,), optional=True) for name, kind in _INPUTS if name != "messages"),
        *(_tensor("output", name, kind, (1,)) for name, kind in _OUTPUTS),
        "instance_group [ { count: 1 kind: KIND_MODEL } ]",
    )
    folder = f"models/{spec.model.id}"
    return Repository({f"{folder}/config.pbtxt": config, f"{folder}/1/model.json": json.dumps(args) + "\n"})


def _python_config(spec: ServeSpec) -> str:
    generates = spec.model.task == "generate"
    workers = int(spec.options["workers"] or (2 if generates else 1))
    # One model decodes texts side by side in threads; other models take one request at a time, so copies of them do.
    count = 1 if generates else workers
    return _text(
        f'name: "{spec.model.id}"',
        'backend: "python"',
        "max_batch_size: 0",
        *(["model_transaction_policy { decoupled: true }"] if generates else []),
        *_python_tensors(spec),
        f"instance_group [ {{ count: {count} kind: {_INSTANCES.get(spec.device.kind, 'KIND_MODEL')} }} ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
          for key, value in _parameters(spec, workers).items()),
    )  # fmt: skip


#: device kind → instance group; the visible GPU is number 0, whichever it is
_INSTANCES = {"cpu": "KIND_CPU", "gpu": "KIND_GPU gpus: [ 0 ]", "rbln": "KIND_MODEL"}


def _python_tensors(spec: ServeSpec) -> Iterable[str]:
    match spec.model.task:
        case "generate":
            yield from (_tensor("input", name, kind, (1,), optional=True) for name, kind in _INPUTS)
            yield from (_tensor("output", name, kind, (1,)) for name, kind in _OUTPUTS)
        case "embed":
            yield _tensor("input", "text_input", "TYPE_STRING", (-1,))
            yield _tensor("output", "embedding", "TYPE_FP32", (-1, -1))
            yield _tensor("output", "num_input_tokens", "TYPE_UINT32", (-1,))
        case _:
            yield from (_declared("input", tensor) for tensor in spec.model.inputs)
            yield from (_declared("output", tensor) for tensor in spec.model.outputs)


def _parameters(spec: ServeSpec, workers: int) -> Mapping[str, str]:
    """Return the parameters in config.pbtxt that model.py reads."""
    model = spec.model
    about = (
        {"model_format": model.format}
        if model.task == "tensor"
        else {"dtype": model.dtype, "max_context": str(model.context_length)}
    )
    library = {"library": json.dumps(spec.library)} if spec.library else {}
    return {"model_path": model.path, "device": _device(spec), **about, "workers": str(workers), **library}


def _device(spec: ServeSpec) -> str:
    """Return the device's name for torch and templates/models/tensors.py."""
    match spec.device.kind:
        case "gpu":
            return "cuda"
        case "rbln":
            return f"rbln:{spec.device.count}"
        case kind:
            return kind


def _declared(what: str, tensor: TensorSpec) -> str:
    if not tensor.shape:
        raise PlanError(
            f"{what} {tensor.name!r} has no dimension, and Triton's tensors have at least one; add one of 1"
        )
    return _tensor(what, tensor.name, f"TYPE_{DATATYPES[tensor.dtype]}", tensor.shape)


def _tensor(what: str, name: str, kind: str, dims: tuple[int, ...], *, optional: bool = False) -> str:
    sizes = ", ".join(map(str, dims))
    return f'{what} {{ name: "{name}" data_type: {kind} dims: [ {sizes} ]{" optional: true" if optional else ""} }}'


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"
