"""Stands in for Rebellions' compiler and runtime `rebel`, which are not public: enough for optimum-rbln and vllm-rbln
to be imported, to check their configuration, and to believe in the NPUs of `npus`.

It compiles nothing: what would be compiled is kept in `compiled`, and an empty file takes the artifact's place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

__version__ = "0.12.0"

npus: list[str] = []  #: the names of the NPUs that are there; set by whoever uses the stub
compiled: list[dict[str, Any]] = []  #: what the compiler was called with


class NothingCompiled(Exception):
    """Somebody asked for what only a real compiler knows, such as the memory that its output needs."""


def npu_is_available(device_id: int = 0) -> bool:
    return device_id < len(npus)


def get_npu_name(device_id: int = 0) -> str | None:
    return npus[device_id] if npu_is_available(device_id) else None


def device_count() -> int:
    return len(npus)


class CompileContext:
    def __init__(self, **_: object) -> None: ...

    def mark_static_address(self, tensor: object, name: str) -> None: ...


class RBLNCompiledModel:
    def __init__(self, *_: object) -> None: ...

    def save(self, path: Path) -> None:
        Path(path).touch()

    def __getattr__(self, name: str) -> Any:
        raise NothingCompiled(name)


class Runtime:
    def __init__(self, *_: object, **__: object) -> None: ...


def compile(  # noqa: A001  (its name there)
    model: object,  # noqa: ARG001
    num_devices: int = 1,
    dtype: str | None = None,
    **arguments: object,
) -> RBLNCompiledModel:
    # vllm-rbln and optimum-rbln look at the signature: `num_devices` and `dtype` are options of 0.12's compiler.
    compiled.append({**arguments, "num_devices": num_devices, "dtype": dtype})
    return RBLNCompiledModel()


def compile_from_torch(model: object, **arguments: Any) -> RBLNCompiledModel:
    return compile(model, **arguments)


def _module(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


_module("rebel.compile_context", CompileContext=CompileContext)

# What the vLLM path imports; nothing of it is called while a configuration is checked.
flags, profiler = _module("rebel.flags"), _module("rebel.profiler")
_module("rebel.core")
_module("rebel.core.torch_compile", rbln_backend=None)
_module("rebel.kv_cache", aligned_tensor=None)
_module("rebel.ops")
_module("rebel.ops.torch_custom_ops", attn=None)
torch.library.define("rbln_custom_ops::linear", "(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
triton = _module("rebel.triton", jit=lambda kernel: kernel, language=_module("rebel.triton.language", constexpr=None))
_module("rebel.triton.language.extra")
_module("rebel.triton.language.extra.rbln", libdevice=None)

# torch-rbln's part: the type of device, and a module of its name.
torch.utils.rename_privateuse1_backend("rbln")
_module("torch.rbln")
