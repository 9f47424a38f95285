"""Runs inside an environment of vllm-rbln, with tests/fakes on its path: what do vllm-rbln and optimum-rbln say?

    python vllm_rbln_check.py QUESTIONS ANSWERS

QUESTIONS is `{"folder": …, "cases": [{"npus": [names], "args": {…}, "flags": […] or null, "env": {…}}, …]}`. Two sets
of tiny weights and a compiled folder are made in `folder`. A case is tried as `AsyncEngineArgs(**args)` and, if it has
flags, as a command line of `vllm serve`, as far as a machine without an NPU can go: the engine's configuration, and
on the optimum path the model, loaded from its folder or handed to the compiler.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import rebel
import vllm_rbln.model_executor.models
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

# Its own __init__ imports every model, and some want torchvision, which has no build for CPU on PyPI.
_MODELS = types.ModuleType("vllm_rbln.model_executor.models.optimum")
_MODELS.__path__ = [f"{path}/optimum" for path in vllm_rbln.model_executor.models.__path__]
sys.modules[_MODELS.__name__] = _MODELS


def main(questions: Path, answers: Path) -> None:
    asked = json.loads(questions.read_text())
    load_general_plugins()
    _make_models(Path(asked["folder"]))
    parser = _parser()
    # The vLLM path patches vLLM for good, so its cases come last.
    order = sorted(
        range(len(asked["cases"])), key=lambda index: asked["cases"][index]["args"].get("model_impl") == "vllm"
    )
    said = {index: _answer(asked["cases"][index], parser) for index in order}
    answers.write_text(json.dumps({"facts": _facts(), "cases": [said[index] for index in sorted(said)]}))


def _make_models(folder: Path) -> None:
    from optimum.rbln import RBLNAutoModelForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    llama = LlamaConfig(**sizes, num_attention_heads=8, max_position_embeddings=262144)
    LlamaForCausalLM(llama).save_pretrained(folder / "weights")
    BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained(folder / "embedder")
    rebel.npus = ["RBLN-CA25"] * 4
    compiled = RBLNAutoModelForCausalLM.from_pretrained(
        str(folder / "weights"),
        export=True,
        rbln_config={"batch_size": 4, "max_seq_len": 8192, "num_devices": 4, "create_runtimes": False},
        dtype="bfloat16",
    )
    compiled.save_pretrained(folder / "compiled")


def _parser() -> FlexibleArgumentParser:
    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> None:
            raise ValueError(message)

    return make_arg_parser(Parser())


def _answer(case: Mapping[str, Any], parser: FlexibleArgumentParser) -> dict[str, Any]:
    rebel.npus = case["npus"]
    os.environ.update(case["env"])
    answer = {"args": _outcome(lambda: AsyncEngineArgs(**json.loads(json.dumps(case["args"]))))}
    if case["flags"] is not None:
        answer["flags"] = _outcome(lambda: _parsed(parser, case["flags"]))
    for name in case["env"]:
        del os.environ[name]
    return answer


def _parsed(parser: FlexibleArgumentParser, words: list[str]) -> AsyncEngineArgs:
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(words))
    args.additional_config = dict(args.additional_config)  # the parser's own default, which vllm-rbln writes into
    return args


def _outcome(make: Callable[[], AsyncEngineArgs]) -> dict[str, Any]:
    try:
        return {"accepted": _load(make().create_engine_config())}
    except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
        return {"refused": f"{type(exc).__name__}: {exc}"}


def _load(config: Any) -> dict[str, Any]:
    own = config.additional_config
    if type(own).__name__ == "RBLNConfig":
        return _check_native(config, own)
    folder = config.model_config.model
    made = _load_folder(folder, own) if Path(folder, "rbln_config.json").exists() else _compile(config, own)
    return {
        **made,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
    }


def _compile(config: Any, own: Any) -> dict[str, Any]:
    """What `RBLNOptimumModelBase.init_model` does where nothing is compiled yet, until the compiler is called."""
    from vllm_rbln.model_executor.models.optimum.compilation import RBLNCompileSpec
    from vllm_rbln.utils.optimum.block_size import get_attn_block_size

    spec = RBLNCompileSpec.for_architecture(
        config.model_config.hf_config,
        batch_size=config.scheduler_config.max_num_seqs,
        block_size=get_attn_block_size(config),
        max_model_len=config.model_config.max_model_len,
        num_devices=own.num_devices_per_local_rank,
        memory_budget=config.cache_config.gpu_memory_utilization,
        prefill_chunk_size=config.scheduler_config.max_num_batched_tokens,
        rbln_overrides=own.optimum_overrides,
    )
    rebel.compiled.clear()
    # Flash attention reads the memory that is left for the KV cache off what the compiler made.
    with contextlib.suppress(rebel.NothingCompiled):
        spec.model_cls.from_pretrained(
            config.model_config.model,
            rbln_config=spec.rbln_config,
            dtype=config.model_config.dtype,
            config=config.model_config.hf_config,
        )
    (devices,) = {call["num_devices"] for call in rebel.compiled}
    return {"num_devices": devices, "block_size": get_attn_block_size(config)}


def _load_folder(folder: str, own: Any) -> dict[str, Any]:
    import optimum.rbln

    loaded = optimum.rbln.RBLNLlamaForCausalLM.from_pretrained(folder, rbln_config=own.optimum_overrides)
    return {"num_devices": own.num_devices_per_local_rank, "block_size": loaded.rbln_config.kvcache_block_size}


def _check_native(config: Any, own: Any) -> dict[str, Any]:
    """The checks of `RBLNModelRunner` that need no NPU."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm_rbln.v1.core.utils import sub_block_size_in_use
    from vllm_rbln.v1.worker.bucketing import get_bucketing_manager

    parallel, scheduler, cache = config.parallel_config, config.scheduler_config, config.cache_config
    buckets = get_bucketing_manager(
        own.decode_batch_bucket_strategy,
        max_batch_size=scheduler.max_num_seqs // parallel.pipeline_parallel_size,
        min_batch_size=own.decode_batch_bucket_min,
        limit=own.decode_batch_bucket_limit,
        step=own.decode_batch_bucket_step,
        manual_buckets=own.decode_batch_bucket_manual_buckets,
    )
    layer = FullAttentionSpec(block_size=cache.block_size, num_kv_heads=1, head_size=8, dtype=config.model_config.dtype)
    sub_block = sub_block_size_in_use(
        enable_prefix_caching=cache.enable_prefix_caching,
        sub_block_cache=own.enable_sub_block_cache,
        block_size=cache.block_size,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        kv_cache_config=KVCacheConfig(1, [], [KVCacheGroupSpec(["layer"], layer)]),
        sub_block_size=own.sub_block_size,
    )
    return {
        "ranks": parallel.world_size_across_dp,
        "buckets": buckets.decode_batch_buckets,
        "sub_block_size": sub_block,
        "block_size": cache.block_size,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
    }


def _facts() -> dict[str, Any]:
    """What our tables say too."""
    from optimum.rbln.transformers.modeling_attention_utils import ATOM_ATTENTION_LIMITS, REBEL_ATTENTION_LIMITS
    from vllm_rbln.config import OptimumRBLNConfig, RBLNConfig
    from vllm_rbln.utils.optimum.converter import params

    paths = {"optimum": OptimumRBLNConfig, "vllm": RBLNConfig}
    return {
        "limits": [asdict(ATOM_ATTENTION_LIMITS), asdict(REBEL_ATTENTION_LIMITS)],
        "chunks": params._PREFILL_CHUNK_SIZE_BY_FAMILY,
        "options": {
            path: {
                item.name: item.type.__name__ if isinstance(item.type, type) else str(item.type)
                for item in fields(config)
                if not item.metadata.get("no_flag")
            }
            for path, config in paths.items()
        },
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
