"""What users may ask of vLLM-RBLN and what we say against it, beside what the real one says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.base import Device, Model
from tests.engines.vllm_rbln_cases import FOLDER, REBEL, WEIGHTS, long, native, npus, options


@dataclass(frozen=True)
class Bad:
    """`wanted` is refused with `ours`. Without our check the real vllm-rbln refuses it too, in words with `theirs`.

    Where it does not, or no more can be seen without an NPU, `theirs` is None and `because` says why we refuse.
    It is asked our plan of nothing wanted, with `wanted` put into it, and with `fed` where that is not the question.
    """

    model: Model
    device: Device
    wanted: Mapping[str, Any]
    ours: str
    theirs: str | None
    because: str = ""
    fed: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = self.wanted.get("additional_config", {})
        words = [self.model.path, *self.wanted, *(options if isinstance(options, Mapping) else ())]
        return " ".join(word for word in words if word != "additional_config")


def _both(wanted: Mapping[str, Any], ours: str, theirs: str | None, because: str = "") -> list[Bad]:
    """Both inputs of the optimum path."""
    return [Bad(model, npus(4), wanted, ours, theirs, because) for model in (WEIGHTS, FOLDER)]


_OURS = "one way to say it: it would win over the vLLM argument without a word"
SILENT = "accepted, and changes nothing"
FIXED = "accepted, and the folder wins without a word"
_LATER = "told by source: an NPU is needed to see it fail"
_OPTIMUM = "it has num_devices_per_local_rank, use_custom_sampler, sub_block_size, optimum_overrides"

BAD = [
    # ------------------------------------------------------------------------------------------- whatever the model
    Bad(WEIGHTS, npus(4), {"device": "rbln"},
        "engine.args.device='rbln': vLLM 0.30 has no such argument, and finds the NPUs by itself; leave it out",
        "unexpected keyword argument 'device'"),
    Bad(WEIGHTS, npus(4), {"device_ids": [0]},
        "engine.args.device_ids=[0]: vllm-rbln does not go by it; set device.ids", None, SILENT),
    Bad(WEIGHTS, npus(4), {"model_impl": "terratorch"},
        "engine.args.model_impl='terratorch' is not known to vllm-rbln; use auto, optimum or vllm",
        "unsupported model implementation 'terratorch'"),
    Bad(WEIGHTS, npus(4), native(),
        "engine.args.model_impl='vllm' needs a REBEL, and RBLN-CA25 is an ATOM; use optimum",
        "The vllm model path is not supported on RBLN-CA25; --model-impl vllm selected it"),
    Bad(WEIGHTS, npus(4), {"max_num_seqs": 0}, "engine.args.max_num_seqs=0: give a whole number from 1 up",
        "greater than or equal to 1"),
    Bad(WEIGHTS, npus(4), {"block_size": "8k"}, "engine.args.block_size='8k': give a whole number from 1 up",
        "Input should be a valid integer"),
    Bad(WEIGHTS, npus(4), {"additional_config": "sub_block_size"},
        "engine.args.additional_config='sub_block_size' is no mapping of vllm-rbln's options; "
        "give engine.args.additional_config.<option>=<value>", "Input should be a valid dictionary"),
    Bad(WEIGHTS, npus(4), options(foo=1),
        "engine.args.additional_config.foo is no option of vllm-rbln 0.12; with engine.args.model_impl=optimum "
        + _OPTIMUM, "takes only OptimumRBLNConfig fields, and ['foo'] are not fields"),
    Bad(WEIGHTS, npus(4), options(use_w8a8=True),
        "engine.args.additional_config.use_w8a8 belongs to engine.args.model_impl=vllm, and this is optimum; leave it "
        "out", "takes only OptimumRBLNConfig fields, and ['use_w8a8'] are not fields"),
    Bad(WEIGHTS, npus(4), options(use_custom_sampler="maybe"),
        "engine.args.additional_config.use_custom_sampler='maybe': give true or false",
        "Input should be a valid boolean"),
    Bad(WEIGHTS, npus(4), options(sub_block_size=0),
        "engine.args.additional_config.sub_block_size=0: give a whole number from 1 up",
        "Input should be greater than 0"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides="x"),
        "engine.args.additional_config.optimum_overrides='x': give a mapping", "Input should be a valid dictionary"),
    # ----------------------------------------------------------------------------------- the optimum path, both inputs
    *_both({"tensor_parallel_size": 4},
           "engine.args.tensor_parallel_size=4: optimum-rbln itself spreads a model over NPUs "
           "(--rbln-num-devices-per-local-rank), as many as device.count; leave it out and set device.count=4",
           "Cannot set tensor_parallel_size on the optimum model path. Use --rbln-num-devices-per-local-rank"),
    *_both({"pipeline_parallel_size": 2},
           "engine.args.pipeline_parallel_size=2: optimum-rbln's graphs have no stages; leave it out, and use "
           "device.count for more NPUs", "Pipeline parallelism is not supported on the optimum model path"),
    *_both({"data_parallel_size": 2},
           "engine.args.data_parallel_size=2: every replica would use the same NPUs; leave it out, and start a "
           "deployment for each", None, _LATER),
    *_both({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
           "engine.args.speculative_config={'method': 'ngram', 'num_speculative_tokens': 2}: optimum-rbln's graphs "
           "cannot speculate; leave it out", "Speculative decoding is not supported on the optimum model path"),
    *_both({"quantization": "fp8"},
           "engine.args.quantization='fp8' changes nothing in optimum-rbln's graphs; leave it out", None, SILENT),
    *_both({"kv_cache_dtype": "fp8"},
           "engine.args.kv_cache_dtype='fp8' changes nothing in optimum-rbln's graphs; leave it out", None, SILENT),
    Bad(WEIGHTS, npus(4), options(num_devices_per_local_rank=8),
        "engine.args.additional_config.num_devices_per_local_rank=8, but device.count=4; set device.count alone",
        "Device 4 is not a valid NPU device"),
    Bad(FOLDER, npus(4), options(num_devices_per_local_rank=8),
        "engine.args.additional_config.num_devices_per_local_rank=8, but device.count=4; set device.count alone",
        None, FIXED),
    # -------------------------------------------------------------------------------------------- a compiled folder
    Bad(FOLDER, npus(4), {"max_num_batched_tokens": 8192},
        "engine.args.max_num_batched_tokens=8192: the compiled folder fixes it; leave it out, or compile with "
        "model.build.rbln.prefill_chunk_size",
        "max_num_batched_tokens (8192) conflicts with the compiled prefill_chunk_size (128)"),
    *(
        Bad(FOLDER, npus(4), {name: value},
            f"engine.args.{name}={value!r}: the compiled folder fixes it; leave it out, or compile with {key}",
            None, FIXED)
        for name, value, key in [
            ("max_num_seqs", 2, "model.build.rbln.batch_size"),
            ("max_model_len", 4096, "model.context_length"),
            ("block_size", 4096, "model.build.rbln.kvcache_partition_len"),
            ("dtype", "float16", "model.dtype"),
        ]
    ),
    Bad(FOLDER, npus(4), options(optimum_overrides={"batch_size": 2}),
        "engine.args.additional_config.optimum_overrides.batch_size: the compiled folder fixes it; leave it out, or "
        "compile with model.build.rbln.batch_size", None, FIXED),
    Bad(FOLDER, npus(1, REBEL), native(), "engine.args.model_impl='vllm' cannot serve what optimum-rbln compiled; "
        "use optimum", None, _LATER),
    # ------------------------------------------------------------------------------- weights, compiled at start-up
    Bad(long(40000), npus(4), {},
        "model.context_length=40000 is beyond the 32768 of eager attention on ATOM, and no multiple of 1024 as flash "
        "attention needs; change it", "`max_seq_len` is set to 40000, which exceeds the ATOM limit of 32768",
        fed={"block_size": 40000, "enable_prefix_caching": False}),
    Bad(WEIGHTS, npus(4), {"max_model_len": 65536, "block_size": 65536},
        "engine.args.block_size=65536 is the whole context, which means eager attention, and that ends at 32768 on "
        "ATOM; leave it out", "`max_seq_len` is set to 65536, which exceeds the ATOM limit of 32768"),
    Bad(WEIGHTS, npus(1, REBEL), {"max_model_len": 32768, "block_size": 32768},
        "engine.args.block_size=32768 is the whole context, which means eager attention, and that ends at 16384 on "
        "REBEL; leave it out", "`max_seq_len` is set to 32768, which exceeds the REBEL limit of 16384"),
    Bad(WEIGHTS, npus(4), {"max_model_len": 10240, "block_size": 4096},
        "engine.args.block_size=4096, but engine.args.max_model_len=10240 is no multiple of it; leave it out",
        "`max_seq_len` (10240) must be a multiple of `kvcache_partition_len` (4096)"),
    Bad(WEIGHTS, npus(4), {"block_size": 16384},
        "engine.args.block_size=16384, but model.context_length=8192 is no multiple of it; leave it out",
        "`max_seq_len` (8192) must be a multiple of `kvcache_partition_len` (16384)"),
    Bad(WEIGHTS, npus(4), {"block_size": 512},
        "engine.args.block_size=512: flash attention on ATOM has blocks of 1024 to 32768; leave it out",
        "`kvcache_partition_len` (512) is out of the ATOM supported range"),
    Bad(long(65536), npus(1, REBEL), {"block_size": 32768},
        "engine.args.block_size=32768: flash attention on REBEL has blocks of 1024 to 16384; leave it out",
        "`kvcache_partition_len` (32768) is out of the REBEL supported range"),
    Bad(WEIGHTS, npus(4), {"max_num_batched_tokens": 100, "enable_prefix_caching": False},
        "engine.args.max_num_batched_tokens=100 is the prefill chunk; give a multiple of 64",
        "`prefill_chunk_size` must be a positive integer divisible by 64"),
    Bad(WEIGHTS, npus(4), {"max_num_batched_tokens": 64, "max_num_seqs": 65},
        "engine.args.max_num_batched_tokens=64 is too little; give 65 or more, or leave it out",
        "max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (65)"),
    Bad(WEIGHTS, npus(4), {"max_num_batched_tokens": 128, "enable_chunked_prefill": False},
        "engine.args.max_num_batched_tokens=128 is too little; give 8192 or more, or leave it out",
        "max_num_batched_tokens (128) is smaller than max_model_len (8192)"),
    Bad(WEIGHTS, npus(4), {"max_num_batched_tokens": 16384},
        "model.context_length=8192 is no multiple of the 16384 tokens that prefix caching goes by; change it, or set "
        "engine.args.enable_prefix_caching=false",
        "kvcache_block_size (8192) is not divisible by sub_block_size (16384)"),
    Bad(long(1000), npus(4), {},
        "model.context_length=1000 is no multiple of the 128 tokens that prefix caching goes by; change it, or set "
        "engine.args.enable_prefix_caching=false", "kvcache_block_size (1000) is not divisible by sub_block_size (128)",
        fed={"block_size": 1000}),
    Bad(WEIGHTS, npus(4), options(sub_block_size=100),
        "engine.args.additional_config.sub_block_size=100: give a multiple of the prefill chunk, 128",
        "sub_block_size (100) is not divisible by prefill_chunk_size (128)"),
    Bad(WEIGHTS, npus(4), {"block_size": 8192, **options(sub_block_size=384)},
        "engine.args.block_size=8192 is no multiple of the 384 tokens that prefix caching goes by; change it, or set "
        "engine.args.enable_prefix_caching=false",
        "kvcache_block_size (8192) is not divisible by sub_block_size (384)"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides={"dtype": "float32"}),
        "engine.args.additional_config.optimum_overrides.dtype='float32': set engine.args.dtype instead",
        "`dtype` cannot be set in `additional_config`'s `optimum_overrides`"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides={"num_devices": 2}),
        "engine.args.additional_config.optimum_overrides.num_devices=2: set device.count instead",
        "rbln_overrides conflict with vllm-derived compile config: num_devices (compiled=4, override=2)"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides={"memory_budget": 0.5}),
        "engine.args.additional_config.optimum_overrides.memory_budget=0.5: set engine.args.gpu_memory_utilization "
        "instead", "rbln_overrides conflict with vllm-derived compile config: memory_budget"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides={"kvcache_num_blocks": 4}),
        "engine.args.additional_config.optimum_overrides.kvcache_num_blocks=4: set engine.args.num_gpu_blocks_override "
        "instead", "`memory_budget` and an explicit `kvcache_num_blocks` are mutually exclusive"),
    Bad(WEIGHTS, npus(4), {"max_num_batched_tokens": 512, **options(optimum_overrides={"prefill_chunk_size": 256})},
        "engine.args.additional_config.optimum_overrides.prefill_chunk_size=256: set "
        "engine.args.max_num_batched_tokens instead", "Conflicting prefill chunk size"),
    Bad(WEIGHTS, npus(4), options(optimum_overrides={"batch_size": 2}),
        "engine.args.additional_config.optimum_overrides.batch_size=2: set engine.args.max_num_seqs instead",
        None, _OURS),
    Bad(WEIGHTS, npus(4), {"enable_lora": True},
        "engine.args.enable_lora=True: adapters are compiled in; name them in "
        "engine.args.additional_config.optimum_overrides.lora_config", None, _LATER),
    # ------------------------------------------------------------------------------------- vLLM's own model, on REBEL
    Bad(WEIGHTS, npus(1, REBEL), native(**options(optimum_overrides={})),
        "engine.args.additional_config.optimum_overrides belongs to engine.args.model_impl=optimum, and this is vllm; "
        "leave it out", "takes only RBLNConfig fields, and ['optimum_overrides'] are not fields"),
    Bad(WEIGHTS, npus(2, REBEL), native(**options(num_devices_per_local_rank=2)),
        "engine.args.additional_config.num_devices_per_local_rank=2: a rank is one REBEL; set device.count instead",
        None, _LATER),
    Bad(WEIGHTS, npus(4, REBEL), native(tensor_parallel_size=2),
        "device.count=4, but the tensor, pipeline and data parallel sizes make 2 ranks of one NPU each; set "
        "device.count=2", None, "the other NPUs would be held and not used"),
    Bad(WEIGHTS, npus(1, REBEL), native(enable_chunked_prefill=False),
        "engine.args.enable_chunked_prefill=False: vllm-rbln reads prompts in chunks; leave it out",
        "Disabling chunked prefill is not supported on RBLN", fed={"max_num_batched_tokens": 8192}),
    Bad(WEIGHTS, npus(1, REBEL), native(enable_lora=True),
        "engine.args.enable_lora=True: vllm-rbln has no LoRA on this path; use model_impl=optimum",
        "LoRA is not supported on RBLN"),
    Bad(WEIGHTS, npus(2, REBEL), native(pipeline_parallel_size=2, max_num_seqs=1),
        "engine.args.pipeline_parallel_size=2 needs engine.args.max_num_seqs=2 or more",
        "pipeline_parallel_size=2 requires max_num_seqs >= 2", fed={"tensor_parallel_size": 1}),
    Bad(WEIGHTS, npus(1, REBEL), native(max_num_batched_tokens=2),
        "engine.args.max_num_batched_tokens=2 is below engine.args.max_num_seqs=4; change one of them",
        "max_num_batched_tokens (2) must be greater than or equal to max_num_seqs (4)"),
    Bad(WEIGHTS, npus(2, REBEL), native(data_parallel_size=2, max_num_seqs=3),
        "engine.args.max_num_batched_tokens=512 is no multiple of engine.args.max_num_seqs=3, as data parallelism "
        "needs; change one of them", "max_num_batched_tokens must be divisible by max_num_seqs when DP enabled",
        fed={"tensor_parallel_size": 1}),
    Bad(WEIGHTS, npus(2, REBEL), native(data_parallel_size=2, **options(use_moe_tokens_mask=False)),
        "engine.args.additional_config.use_moe_tokens_mask=False: data and expert parallelism need it; leave it out",
        "--rbln-use-moe-tokens-mask is required when DP or EP enabled", fed={"tensor_parallel_size": 1}),
    Bad(WEIGHTS, npus(1, REBEL), native(block_size=8192, **options(use_dynamic_kv_cache=True)),
        "engine.args.additional_config.use_dynamic_kv_cache=True needs engine.args.block_size below the context length "
        "8192", "block_size == max_model_len selects normal attention"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(use_dynamic_kv_cache=True, use_custom_kernel=True)),
        "engine.args.additional_config.use_dynamic_kv_cache=True excludes "
        "engine.args.additional_config.use_custom_kernel=True; leave one out",
        "the rbln_triton_ops kernels take no dynamic KV input"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(decode_batch_bucket_strategy="exp")),
        "engine.args.additional_config.decode_batch_bucket_strategy='exp': give 'exponential' or 'linear' or 'manual'",
        "Input should be 'exponential', 'linear' or 'manual'"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(decode_batch_bucket_manual_buckets=[2, 2])),
        "engine.args.additional_config.decode_batch_bucket_manual_buckets=[2, 2]: give different whole numbers from 1 "
        "up, in a list", "decode_batch_bucket_manual_buckets must be unique"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(decode_batch_bucket_strategy="manual")),
        "engine.args.additional_config.decode_batch_bucket_manual_buckets=[]: the largest must be the batch of a "
        "pipeline stage, 4", "decode_batch_bucket_strategy='manual' needs at least one entry"),
    Bad(WEIGHTS, npus(1, REBEL),
        native(**options(decode_batch_bucket_strategy="manual", decode_batch_bucket_manual_buckets=[1, 2])),
        "engine.args.additional_config.decode_batch_bucket_manual_buckets=[1, 2]: the largest must be the batch of a "
        "pipeline stage, 4", "The last manual bucket must be equal to the max batch size"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(decode_batch_bucket_min=8)),
        "engine.args.additional_config.decode_batch_bucket_min=8 is above the batch of a pipeline stage, 4",
        "max_batch_size must be >= min_batch_size"),
    Bad(WEIGHTS, npus(2, REBEL), native(pipeline_parallel_size=2, **options(decode_batch_bucket_min=3)),
        "engine.args.additional_config.decode_batch_bucket_min=3 is above the batch of a pipeline stage, 2",
        "max_batch_size must be >= min_batch_size", fed={"tensor_parallel_size": 1}),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(decode_batch_bucket_step=1)),
        "engine.args.additional_config.decode_batch_bucket_step=1: exponential buckets need 2 or more",
        "For exponential bucketing, step must be greater than 1"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(sub_block_size=512, enable_sub_block_cache=False)),
        "engine.args.additional_config.sub_block_size=512, but prefix caching in sub-blocks is switched off; leave it "
        "out", "enable_sub_block_cache=False turns it off"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(sub_block_size=1024)),
        "engine.args.additional_config.sub_block_size=1024 must divide engine.args.block_size=4096 and be at most "
        "engine.args.max_num_batched_tokens=512, which must be at most the block size",
        "sub-block prefix caching needs block_size >= max_num_batched_tokens >= sub_block_size"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(sub_block_size=100)),
        "engine.args.additional_config.sub_block_size=100 must divide engine.args.block_size=4096 and be at most "
        "engine.args.max_num_batched_tokens=512, which must be at most the block size",
        "sub_block_size=100 is not one this KV cache can hold"),
    Bad(WEIGHTS, npus(1, REBEL), native(**options(sub_block_size=256)),
        "engine.args.additional_config.sub_block_size=256 below engine.args.max_num_batched_tokens=512 needs an "
        "RBLN-CR13; leave it out", "which needs the multi-block store that only REBEL CR13 carries"),
]  # fmt: skip
