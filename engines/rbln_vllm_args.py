"""The user's settings of vLLM's engine arguments and vllm-rbln's own options, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.base import Model, PlanError

#: the options of additional_config by model path: int is a whole number from 1 up, a tuple lists the choices
_BOTH: dict[str, Any] = {"num_devices_per_local_rank": int, "use_custom_sampler": bool, "sub_block_size": int}
OPTIONS: dict[str, dict[str, Any]] = {
    "optimum": {**_BOTH, "optimum_overrides": dict},
    "vllm": {
        **_BOTH,
        "enforce_model_fp32": bool,
        "use_batch_attn_opt": bool,
        "use_custom_kernel": bool,
        "use_dynamic_kv_cache": bool,
        "enable_sub_block_cache": bool,
        "specialize_moe_decode": bool,
        "use_moe_tokens_mask": bool,
        "use_all2all_dispatch": bool,
        "use_all2all_combine": bool,
        "decode_batch_bucket_strategy": ("exponential", "linear", "manual"),
        "decode_batch_bucket_min": int,
        "decode_batch_bucket_step": int,
        "decode_batch_bucket_limit": int,
        "decode_batch_bucket_manual_buckets": list,
        "use_w8a8": bool,
        "compile_dtype": ("", "float16", "bfloat16"),
    },
}


@dataclass(frozen=True, slots=True)
class VllmArgs:
    """vLLM's engine arguments as the user set them, and the config keys that set them."""

    args: Mapping[str, Any]
    keys: Mapping[str, str]  #: config keys of arguments that are not set by engine.args.<name>
    options: Mapping[str, Any] = field(default_factory=dict)  #: additional_config

    def key(self, name: str) -> str:
        """Return the config key that sets the argument `name`."""
        return self.keys.get(name, f"engine.args.{name}")

    def said(self, name: str) -> str:
        """Return the argument as the user wrote it, for messages: `engine.args.block_size=4096`."""
        return f"{self.key(name)}={self.args[name]!r}"

    def option(self, name: str) -> str:
        """Return the option of additional_config as the user wrote it, for messages."""
        return f"{self.key('additional_config')}.{name}={self.options[name]!r}"

    def number(self, name: str, default: int) -> int:
        """Return a whole number from 1 up; `default` if it is not set. Raises `PlanError` for anything else."""
        value = self.args.get(name, default)
        if not _whole(value):
            raise PlanError(f"{self.said(name)}: give a whole number from 1 up")
        return int(value)

    def length(self, model: Model) -> tuple[int, str]:
        """Return the context length, and the words for it in messages."""
        value = self.number("max_model_len", model.context_length)
        return value, f"{self.key('max_model_len') if 'max_model_len' in self.args else 'model.context_length'}={value}"

    def with_options(self, given: object, path: str) -> VllmArgs:
        """Return the same with additional_config, checked against the options of the model path."""
        key = self.key("additional_config")
        if not isinstance(given, Mapping):
            raise PlanError(f"{key}={given!r} is no mapping of vllm-rbln's options; give {key}.<option>=<value>")
        for name, value in given.items():
            if (kind := OPTIONS[path].get(name)) is None:
                raise PlanError(f"{key}.{name} {self._unknown(name, path)}")
            if value is not None and not _fits(value, kind):
                raise PlanError(f"{key}.{name}={value!r}: give {_described(kind)}")
        return VllmArgs(self.args, self.keys, {name: value for name, value in given.items() if value is not None})

    def _unknown(self, name: str, path: str) -> str:
        other = next((other for other, options in OPTIONS.items() if name in options), None)
        if other:
            return f"belongs to {self.key('model_impl')}={other}, and this is {path}; leave it out"
        return f"is no option of vllm-rbln 0.12; with {self.key('model_impl')}={path} it has {', '.join(OPTIONS[path])}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _fits(value: object, kind: Any) -> bool:
    if kind is int:
        return _whole(value)
    if kind is list:
        return isinstance(value, list) and all(map(_whole, value)) and len(set(value)) == len(value)
    return value in kind if isinstance(kind, tuple) else isinstance(value, Mapping if kind is dict else kind)


def _described(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(repr, kind))
    numbers = "different whole numbers from 1 up, in a list"
    return {int: "a whole number from 1 up", bool: "true or false", dict: "a mapping", list: numbers}[kind]
