"""Whether a model fits: published sizes, the numbers of a refusal, and properties that hold for any model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.base import Device, MemoryUse, PlanError, ServeSpec
from launcher import registry
from launcher.deployments.ledger import Ledger
from launcher.fit import estimate
from launcher.fit.estimate import FitRequest
from launcher.fit.model_facts import ModelFacts
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle

GIB = 1 << 30
H100 = 'device.assume="NVIDIA H100 80GB HBM3"'
LLAMA_8B = ModelFacts(
    "test", 8_030_261_248, layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=128256
)


def spec_of(tmp_path: Path, *overrides: str) -> ServeSpec:
    return resolve(settle(overrides, this_machine()).config, Machine(Ledger(tmp_path / "state")))[1]


def refusal(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        spec_of(tmp_path, *overrides)
    return str(caught.value)


def asked(memory_gib: float = 24, **changes: Any) -> FitRequest:
    """Llama 3 8B on one GPU, by an engine that takes nothing for itself."""
    use = MemoryUse(8192, spread="heads", tokens_at_once=0, logits_at_once=0)
    use = dataclasses.replace(use, **changes.pop("use", {}))
    device = Device("gpu", product="G", memory_bytes=int(memory_gib * GIB))
    return dataclasses.replace(FitRequest("m", "e", LLAMA_8B, use, device, counts=(1,)), **changes)


# ---------------------------------------------------------------------------------------------------- published sizes


def test_llama_3_8b_on_4_atom_as_published(tmp_path: Path) -> None:
    """rbln-model-zoo: 8192 tokens, batch 4, on 4 NPUs."""
    spec = spec_of(tmp_path, "engine=vllm", "device=rbln", "device.assume=RBLN-CA25", "model=llama3-8b")

    assert spec.device.ids == (0, 1, 2, 3)
    assert spec.memory is not None
    assert spec.memory.weights == 16_060_522_496 // 4
    assert spec.memory.kv_cache == GIB  # 4 × 8192 tokens of 128 KiB, over 4
    assert spec.memory.usable == 16 * GIB - 288 * 1024**2
    assert spec.memory.needed < spec.memory.usable
    assert spec.notes == (
        "4 × RBLN-CA25 as published for llama3-8b; by the estimate it would fit on 2 (device.count=2)",
    )


def test_llama_3_8b_on_1_atom_is_refused(tmp_path: Path) -> None:
    """Shown there with 512 tokens alone (unofficial, CA22, SDK 0.11)."""
    words = ("engine=vllm", "device=rbln", "device.assume=RBLN-CA25", "device.count=1", "model=llama3-8b")

    assert re.fullmatch(
        r"llama3-8b does not fit on 1 × RBLN-CA25 with 16\.0 GiB: it needs 19\.5 GiB \(weights 15\.0 GiB \+ KV cache "
        r"4\.0 GiB \+ activations \d+ MiB \+ programs 512 MiB\) and may use 15\.7 GiB; what fits: "
        r"model\.context_length=256, or device\.count=2",
        refusal(tmp_path, *words),
    )
    short = spec_of(tmp_path, *words, "model.context_length=512", "model.build.rbln.batch_size=1")
    assert short.device.ids == (0,)


@pytest.mark.parametrize("product", ["RTX3090", "NVIDIA L4", "NVIDIA A10"])
def test_llama_3_8b_on_one_gpu_of_24_gb(tmp_path: Path, product: str) -> None:
    spec = spec_of(tmp_path, "engine=vllm", "device=gpu", f"device.assume={product}", "model=llama3-8b")

    assert spec.memory is not None
    assert spec.memory.needed < spec.memory.usable
    assert (spec.model.context_length, spec.notes) == (8192, ())


def test_llama_3_8b_on_one_gpu_of_16_gb_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "engine=vllm", "device=gpu", "device.assume=RTX4080", "model=llama3-8b")

    assert said.startswith("llama3-8b does not fit on 1 × NVIDIA GeForce RTX 4080 with 16.0 GiB: it needs 17.")
    assert said.endswith("what fits: device.count=2, or a model quantized to 4 bits (about 4.2 GiB of weights)")


def test_llama_3_70b_needs_two_of_80_gb_and_has_room_on_four(tmp_path: Path) -> None:
    words = ("engine=vllm", "device=gpu", H100, "model=llama3-70b")
    two, four = (spec_of(tmp_path, *words, f"device.count={count}").memory for count in (2, 4))
    assert two is not None
    assert four is not None

    assert refusal(tmp_path, *words).endswith("what fits: device.count=2, or a model quantized to 4 bits (about 37.0 "
                                              "GiB of weights)")  # fmt: skip
    assert (two.weights, four.weights) == (141_107_412_992 // 2, 141_107_412_992 // 4)
    assert two.usable - two.needed < 4 * GIB
    assert four.usable - four.needed > 30 * GIB
    assert "model.context_length=" in refusal(tmp_path, *words, "device.count=2", "model.context_length=65536")


def test_llama_3_70b_on_one_gpu_of_24_gb_is_refused_with_the_numbers(tmp_path: Path) -> None:
    said = refusal(tmp_path, "engine=vllm", "device=gpu", "device.assume=RTX3090", "model=llama3-70b")

    assert said == (
        "llama3-70b does not fit on 1 × NVIDIA GeForce RTX 3090 with 24.0 GiB: it needs 135.3 GiB (weights 131.4 GiB + "
        "KV cache 2.5 GiB + activations 840 MiB + programs 600 MiB) and may use 22.1 GiB "
        "(engine.gpu_memory_utilization=0.92); what fits: device.count=8"
    )


def test_what_vllm_reported_of_llama_3_8b_on_an_h100() -> None:
    """vllm-project/vllm pull request 10511: 14.96 GiB of weights, 1.26 of activations with 8192 tokens at once, 0.9 of
    79.22 GiB to use, and 53.29 GiB left for the KV cache after 1.79 that is not torch's."""
    vllm = registry.engine("vllm")
    settled = settle(["engine=vllm", "device=gpu", H100, "model=llama3-8b"], this_machine()).config
    options = {key: getattr(settled.engine, key) for key in ("gpu_memory_utilization", "nodes", "max_num_seqs")}
    device = Device("gpu", product="NVIDIA H100 80GB HBM3", memory_bytes=int(79.22 * GIB))
    model = spec_model("llama3-8b")

    use = vllm.memory(model, device, options | {"gpu_memory_utilization": 0.9}, {})
    assert use is not None
    memory = estimate.estimate(dataclasses.replace(asked(), use=use, device=device), 1, 8192)

    assert memory is not None
    assert memory.usable / GIB == pytest.approx(71.29, abs=0.02)
    assert memory.weights / GIB == pytest.approx(14.96, abs=0.01)
    assert memory.activations / GIB == pytest.approx(1.26, abs=0.1)
    left = memory.usable - memory.weights - memory.activations - memory.overhead
    assert left / GIB == pytest.approx(53.29, rel=0.04)


def spec_model(name: str) -> Any:
    from engines.base import Model

    return Model(name, "hf:a/b", "safetensors", "/m", context_length=8192)


# ------------------------------------------------------------------------------------------------------------ choices


def test_as_few_devices_as_hold_it_are_taken() -> None:
    found = estimate.choose(asked(7.5, counts=(1, 2, 4, 8)))

    assert found is not None
    assert found.count == 4
    assert found.notes[0].startswith("device.count=4: m does not fit on fewer (weights 3.7 GiB + KV cache 256 MiB")


def test_a_context_that_nobody_asked_for_is_shortened_and_said_so() -> None:
    found = estimate.choose(asked(15.5, shorten=True))

    assert found is not None
    assert (found.count, found.context_length) == (1, 4352)
    assert found.notes == ("model.context_length=4352, not 8192: longer does not fit into 1 × G with 15.5 GiB",)
    with pytest.raises(PlanError, match=r"what fits: model\.context_length=4352, or device\.count=2"):
        estimate.choose(asked(15.5))


def test_a_context_that_is_hardly_one_is_a_refusal() -> None:
    with pytest.raises(PlanError, match=r"what fits: model\.context_length=256, or device\.count=2"):
        estimate.choose(asked(15, shorten=True))


def test_what_is_published_is_believed_and_the_estimate_is_said() -> None:
    found = estimate.choose(asked(3, counts=(4,), published=True))

    assert found is not None
    assert found.count == 4
    assert found.notes[0].startswith("4 × G as published for m, though the estimate is weights 3.7 GiB")


def test_heads_that_cannot_be_shared_equally_are_refused() -> None:
    facts = dataclasses.replace(LLAMA_8B, heads=14, kv_heads=2)

    with pytest.raises(PlanError, match=r"m has 14 attention heads and 2 of keys and values, which 4 devices cannot "
                                        r"share equally; use device\.count=2"):  # fmt: skip
        estimate.choose(asked(facts=facts, counts=(4,)))
    assert list(estimate.counts(asked().use, facts, 16)) == [1, 2]
    assert list(estimate.counts(MemoryUse(1, spread="layers"), facts, 5)) == [1, 2, 3, 4, 5]
    assert list(estimate.counts(MemoryUse(1, spread="any"), facts, 9)) == [1, 2, 4, 8]
    assert list(estimate.counts(MemoryUse(1), facts, 9)) == [1]


def test_more_ranks_than_key_heads_each_keep_one() -> None:
    eight, sixteen = (estimate.estimate(asked(facts=LLAMA_8B), count, 8192) for count in (8, 16))
    assert eight is not None
    assert sixteen is not None

    assert eight.kv_cache == sixteen.kv_cache == GIB // 8
    assert sixteen.weights == eight.weights // 2


def test_devices_that_work_together_need_room_for_that() -> None:
    ask = asked(use={"overhead_bytes": 10, "link_bytes": 5})
    one, two = estimate.estimate(ask, 1, 8192), estimate.estimate(ask, 2, 8192)
    assert one is not None
    assert two is not None

    assert (one.overhead, two.overhead) == (10, 15)


def test_replicas_hold_all_of_the_weights_each() -> None:
    ask = asked(use={"replicas": 2})
    memory = estimate.estimate(ask, 4, 8192)
    assert memory is not None

    assert memory.weights == 16_060_522_496 // 2


def test_a_cache_of_fixed_size_must_hold_the_context() -> None:
    pool = {"kv_pool_bytes": GIB // 2, "kv_pool_key": "engine.pool"}

    with pytest.raises(PlanError, match=r"8192 tokens need a KV cache of 1\.0 GiB, and it has 512 MiB; what fits: "
                                        r"model\.context_length=4096, or engine\.pool=1073741824"):  # fmt: skip
        estimate.choose(asked(use=pool))


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": ModelFacts("nobody")},
        {"facts": dataclasses.replace(LLAMA_8B, layers=None)},
        {"facts": dataclasses.replace(LLAMA_8B, parameters=None)},
        {"device": Device("gpu")},
        {"use": {"weights_dtype": "auto"}},
        {"use": {"kv_dtype": "turbo"}},
    ],
)
def test_of_what_is_not_known_nothing_is_claimed(changes: dict[str, Any]) -> None:
    assert estimate.choose(asked(0.001, **changes)) is None


def test_memory_that_others_have_is_said() -> None:
    ask = asked(20, device=Device("cpu", memory_bytes=20 * GIB), in_use=8 * GIB)
    found = estimate.choose(ask)

    assert found is not None
    assert found.notes == ("m needs 16.0 GiB, and of 20.0 GiB 8.0 GiB is in use now",)
    with pytest.raises(PlanError, match=r"processor, with 10\.0 GiB for this process, of which 8\.0 GiB is in use now"):
        estimate.choose(dataclasses.replace(ask, device=Device("cpu", memory_bytes=10 * GIB)))


# --------------------------------------------------------------------------------------------------- through resolve


def test_a_model_of_unknown_size_is_planned_and_said_so(tmp_path: Path) -> None:
    words = ("engine=vllm", "device=gpu", "device.assume=Tesla T4", "model.source=hf:me/mine", "model.id=mine")
    spec = spec_of(tmp_path, *words)

    assert spec.memory is None
    assert spec.notes == ("the size of mine is not known, so whether it fits is not checked",)


def test_nobody_has_to_look(tmp_path: Path) -> None:
    words = ("engine=vllm", "device=gpu", "device.assume=RTX3090", "model=llama3-70b")
    spec = spec_of(tmp_path, *words, "fit=off")

    assert (spec.memory, spec.notes) == (None, ())
    assert refusal(tmp_path, *words, "fit=maybe") == "fit='maybe' is not known; use auto, keep, off"


def test_a_shorter_context_reaches_the_engine_and_one_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    words = ("engine=vllm", "device=cpu", "model=llama3.2-1b", "++engine.args.kv_cache_memory_bytes=134217728")
    spec = spec_of(tmp_path, *words)
    argv = registry.engine("vllm").plan(spec).argv

    assert argv[argv.index("--max-model-len") + 1] == "4096"
    assert spec.notes[0] == (
        "model.context_length=4096, not 8192: longer does not fit into the KV cache "
        "(engine.args.kv_cache_memory_bytes=134217728)"
    )
    for said in ("model.context_length=8192", "fit=keep", "engine.max_model_len=8192"):
        assert "8192 tokens need a KV cache of 256 MiB" in refusal(tmp_path, *words, said)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("RTX3090", "NVIDIA GeForce RTX 3090"), ("h100", "NVIDIA H100 80GB HBM3"), ("t4", "Tesla T4")],
)
def test_a_product_may_be_named_shortly(tmp_path: Path, said: str, meant: str) -> None:
    spec = spec_of(tmp_path, "engine=vllm", "device=gpu", f"device.assume={said}", "model=llama3.2-1b")

    assert spec.device.product == meant


def test_a_compiled_folder_gets_the_devices_that_it_was_compiled_for(tmp_path: Path) -> None:
    (tmp_path / "rbln_config.json").write_text('{"_compile_cfgs": [{"num_devices": 4}]}')
    words = ("engine=vllm", "device=rbln", f"model.source=file:{tmp_path}", "model.id=mine")

    assert spec_of(tmp_path, *words).device.ids == (0, 1, 2, 3)
    assert spec_of(tmp_path, *words).notes == ()
    assert refusal(tmp_path, *words, "device.count=2") == (
        "mine was compiled for 4 devices, but device.count=2; use device.count=4, or compile it again"
    )


# -------------------------------------------------------------------------------------------------------- properties

FACTS = st.builds(
    ModelFacts,
    origin=st.just("any"),
    parameters=st.integers(10**6, 10**12),
    fixed_bytes=st.integers(0, 10**11),
    layers=st.integers(1, 130),
    hidden=st.integers(64, 16384),
    heads=st.sampled_from([8, 14, 32, 64]),
    kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([64, 128, 256]),
    latent_dim=st.none() | st.just(576),
    intermediate=st.integers(64, 60000),
    vocab=st.integers(1000, 300000),
    window=st.none() | st.integers(128, 8192),
    window_layers=st.just(0),
).map(lambda facts: dataclasses.replace(facts, window_layers=(facts.layers or 0) // 2 if facts.window else 0))
USES = st.builds(
    MemoryUse,
    context_length=st.integers(256, 200_000),
    sequences=st.integers(0, 8),
    weights_dtype=st.sampled_from(["bfloat16", "float32", "float8"]),
    kv_dtype=st.sampled_from(["bfloat16", "float8"]),
    kv_pool_bytes=st.none() | st.integers(10**6, 10**11),
    kv_pool_key=st.just("engine.pool"),
    copies=st.integers(1, 3),
    spread=st.sampled_from(["", "heads", "layers", "any"]),
    usable=st.floats(0.1, 1),
    overhead_bytes=st.integers(0, 2 * GIB),
    tokens_at_once=st.integers(1, 8192),
)
QUESTIONS = st.builds(
    FitRequest,
    model=st.just("m"),
    engine=st.just("e"),
    facts=FACTS,
    use=USES,
    device=st.integers(GIB, 300 * GIB).map(lambda memory: Device("gpu", product="G", memory_bytes=memory)),
    counts=st.just((1,)),
    shorten=st.booleans(),
)


@given(QUESTIONS, st.integers(1, 200_000), st.integers(0, 200_000), st.sampled_from([1, 2, 4, 8]))
def test_more_context_never_needs_less(ask: FitRequest, context: int, more: int, count: int) -> None:
    one, other = estimate.estimate(ask, count, context), estimate.estimate(ask, count, context + more)
    assert one is not None
    assert other is not None

    assert one.needed <= other.needed
    assert estimate.fits(ask, count, context) or not estimate.fits(ask, count, context + more)


@given(QUESTIONS, st.integers(1, 200_000), st.sampled_from([1, 2, 4, 8]))
def test_more_devices_never_need_more_of_each(ask: FitRequest, context: int, count: int) -> None:
    one, other = estimate.estimate(ask, count, context), estimate.estimate(ask, 2 * count, context)
    assert one is not None
    assert other is not None

    assert other.needed <= one.needed


@given(QUESTIONS, st.integers(1, 16))
def test_what_is_chosen_fits_and_what_a_refusal_names_fits_too(ask: FitRequest, most: int) -> None:
    ask = dataclasses.replace(ask, counts=tuple(estimate.counts(ask.use, ask.facts, most)))
    found, refused = None, ""
    try:
        found = estimate.choose(ask)
    except PlanError as exc:
        refused = str(exc)

    if found is None:
        assert not any(estimate.fits(ask, count, ask.use.context_length) for count in ask.counts)
        for way in estimate.nearest(ask, ask.counts[-1]):
            assert way.words in refused
            assert estimate.fits(dataclasses.replace(ask, use=way.use), way.count, way.context_length)
        return
    assert estimate.fits(ask, found.count, found.context_length)
    assert found.count in ask.counts
    fewer = [count for count in ask.counts if count < found.count]
    assert not any(estimate.fits(ask, count, ask.use.context_length) for count in fewer)


@given(QUESTIONS)
def test_the_longest_context_that_fits_is_the_longest(ask: FitRequest) -> None:
    length = estimate.longest(ask, 1)
    assume(length + 256 <= ask.use.context_length)

    assert length == 0 or estimate.fits(ask, 1, length)
    assert not estimate.fits(ask, 1, length + 256)
