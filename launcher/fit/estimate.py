"""Estimate whether a model fits into the memory of its devices, and choose settings with which it does. Pure.

Nothing is claimed that is not known. docs/fit.md has the formulas, and how far they are from what engines take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.base import Device, Memory, MemoryUse, PlanError
from launcher.fit.model_facts import BITS, ModelFacts, size
from launcher.output import gib

_GIB = 1 << 30
#: shortest context, in tokens, that is chosen when the config leaves it open
_SHORTEST = 2048
#: contexts are tried in steps of this many tokens
_STEP = 256
#: most devices that a refusal suggests
_MOST_DEVICES = 64
_CHOICES = ("auto", "keep", "off")


@dataclass(frozen=True, slots=True)
class FitRequest:
    """The question: one model, one engine, devices of one kind."""

    model: str  #: the model's name
    engine: str
    facts: ModelFacts
    use: MemoryUse
    device: Device  #: has the memory of one device
    counts: Sequence[int]  #: possible numbers of devices, the preferred first
    shorten: bool = False  #: a context that does not fit may be made shorter
    published: bool = False  #: the vendor has shown that it fits on `counts[0]`
    in_use: int = 0  #: bytes of a processor's memory that others have now


@dataclass(frozen=True, slots=True)
class Fit:
    """The chosen settings; they fit by the estimate, unless `published` overrules it."""

    count: int
    context_length: int
    memory: Memory | None = None
    notes: tuple[str, ...] = ()


def check_choice(value: str) -> None:
    """Raise `PlanError` for an unknown `fit=`."""
    if value not in _CHOICES:
        raise PlanError(f"fit={value!r} is not known; use {', '.join(_CHOICES)}")


def choose(request: FitRequest) -> Fit | None:
    """Return the first count on which the model fits, else a shorter context; None if too little is known.

    Raises `PlanError` with each part of the estimate and the nearest settings that fit.
    """
    wanted = request.use.context_length
    check_heads(request)
    for count in request.counts:
        memory = estimate(request, count, wanted)
        if memory is None:
            return None
        if not _too_much(request, memory, wanted):
            return Fit(count, wanted, memory, tuple(_count_notes(request, count, memory)))
    count = request.counts[0] if request.published else request.counts[-1]
    memory = estimate(request, count, wanted)
    assert memory is not None
    if request.published:
        note = (
            f"{count} × {_product(request)} as published for {request.model}, though the estimate is {_parts(memory)}"
        )
        return Fit(count, wanted, memory, (note,))
    length = longest(request, count)
    if request.shorten and length >= min(_SHORTEST, wanted):
        memory = estimate(request, count, length)
        assert memory is not None
        return Fit(count, length, memory, (_shorter(request, count, length), *_count_notes(request, count, memory)))
    raise PlanError(_refusal(request, count, memory))


def compiled(request: FitRequest, *, given: bool) -> Fit:
    """Return the device count that a folder was compiled for. Raises `PlanError` if another was asked for."""
    count = request.facts.num_devices or 1
    if given and request.device.count != count:
        raise PlanError(
            f"{request.model} was compiled for {count} devices, but device.count={request.device.count}; "
            f"use device.count={count}, or compile it again"
        )
    return Fit(count, request.use.context_length)


def estimate(request: FitRequest, count: int, context: int) -> Memory | None:
    """Return the memory that each of `count` devices must hold; None if the weights or the cache are not known."""
    use, facts = request.use, request.facts
    if request.device.memory_bytes is None or not {use.weights_dtype, use.kv_dtype} <= BITS.keys():
        return None
    weights = facts.weights(use.weights_dtype, as_stored=use.as_stored)
    cache = _cache(request, context)
    if weights is None or cache is None:
        return None
    alone = count * use.nodes // use.replicas <= 1
    usable = int(request.device.memory_bytes * use.usable) - use.reserved_bytes
    return Memory(
        weights=-(-weights * use.copies // _parts_of_weights(use, count)),
        kv_cache=-(-cache // _parts_of_cache(use, facts, count)),
        activations=_activations(request),
        overhead=use.overhead_bytes + (0 if alone else use.link_bytes),
        usable=usable,
    )


def fits(request: FitRequest, count: int, context: int) -> bool:
    """Return whether the model fits on `count` devices with that context; False if too little is known."""
    memory = estimate(request, count, context)
    return memory is not None and not _too_much(request, memory, context)


def longest(request: FitRequest, count: int) -> int:
    """Return the longest context, in steps of 256 tokens, that fits on `count` devices; 0 if none does."""
    low, high = 0, request.use.context_length // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(request, count, middle * _STEP) else (low, middle - 1)
    return low * _STEP


def counts(use: MemoryUse, facts: ModelFacts, most: int) -> Iterator[int]:
    """Yield the numbers of devices, up to `most`, that the engine can spread the model over, the smallest first."""
    for count in range(1, most + 1):
        even = count & (count - 1) == 0
        able = {
            "layers": count <= (facts.layers or count),
            "heads": even and _shares_heads(use, facts, count),
            "any": even,
        }
        if count == 1 or able.get(use.spread, False):
            yield count


def check_heads(request: FitRequest) -> None:
    """Raise `PlanError` if the attention heads cannot be shared out equally over the first count."""
    count, facts, use = request.counts[0], request.facts, request.use
    if use.spread != "heads" or _shares_heads(use, facts, count):
        return
    able = [number for number in range(1, count) if _shares_heads(use, facts, number)]
    raise PlanError(
        f"{request.model} has {facts.heads} attention heads and {facts.kv_heads} of keys and values, which "
        f"{count} devices cannot share equally; use device.count={able[-1]}"
    )


def _shares_heads(use: MemoryUse, facts: ModelFacts, count: int) -> bool:
    """Return whether `count` devices can share the heads as vLLM does: divided, or each kept by several devices."""
    ranks, rest = divmod(count * use.nodes, use.replicas * use.stages)
    if rest or ranks < 1 or not facts.heads:
        return True  # said elsewhere, or not known
    kv_heads = facts.kv_heads or facts.heads
    return facts.heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def _parts_of_weights(use: MemoryUse, count: int) -> int:
    return max(1, count * use.nodes // use.replicas) if use.spread else 1


def _parts_of_cache(use: MemoryUse, facts: ModelFacts, count: int) -> int:
    parts = _parts_of_weights(use, count)
    if use.spread != "heads":
        return parts
    # A cache that all heads share (MLA) is kept whole by every rank.
    most = 1 if facts.latent_dim else facts.kv_heads or parts
    return min(max(1, parts // use.stages), most) * use.stages


def _cache(request: FitRequest, context: int) -> int | None:
    if request.use.kv_pool_bytes is not None:
        return request.use.kv_pool_bytes
    one = 0 if request.use.sequences == 0 else request.facts.kv_cache(context, request.use.kv_dtype)
    return None if one is None else one * request.use.sequences


def _activations(request: FitRequest) -> int:
    """Return the bytes of activations: one layer's forward step plus the logits. Unknown sizes count as 0."""
    use, facts = request.use, request.facts
    layer = 3 * (facts.intermediate or 0) + 4 * (facts.hidden or 0)
    dtype = use.weights_dtype if BITS[use.weights_dtype] >= 16 else "bfloat16"
    return size(use.tokens_at_once * layer, dtype) + size(use.logits_at_once * (facts.vocab or 0), "float32")


def _too_much(request: FitRequest, memory: Memory, context: int) -> bool:
    return memory.needed > memory.usable or not _pool_holds(request, context)


def _pool_holds(request: FitRequest, context: int) -> bool:
    """Return whether a cache of fixed size has room for all sequences; True if it has no fixed size."""
    if request.use.kv_pool_bytes is None:
        return True
    one = request.facts.kv_cache(context, request.use.kv_dtype)
    return one is None or one * request.use.sequences <= request.use.kv_pool_bytes


def _count_notes(request: FitRequest, count: int, memory: Memory) -> Iterator[str]:
    if request.published:
        fewer = next(
            (n for n in counts(request.use, request.facts, count) if fits(request, n, request.use.context_length)),
            count,
        )
        if fewer < count:
            yield (
                f"{count} × {_product(request)} as published for {request.model}; by the estimate it would fit on "
                f"{fewer} (device.count={fewer})"
            )
    elif len(request.counts) > 1 and count > request.counts[0]:
        yield f"device.count={count}: {request.model} does not fit on fewer ({_parts(memory)} on each)"
    if request.in_use and memory.needed > memory.usable - request.in_use:
        in_use = f"of {gib(memory.usable)} {gib(request.in_use)} is in use now"
        yield f"{request.model} needs {gib(memory.needed)}, and {in_use}"


# ------------------------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True, slots=True)
class Way:
    """A setting that fits."""

    words: str  #: for the command line
    count: int
    context_length: int
    use: MemoryUse


def nearest(request: FitRequest, count: int) -> Iterator[Way]:
    """Yield the settings nearest to the request that fit, one of each kind."""
    use, wanted = request.use, request.use.context_length
    if length := longest(request, count):
        yield Way(f"{use.context_key}={length}", count, length, use)
    for more in counts(use, request.facts, _MOST_DEVICES):
        if more > count and fits(request, more, wanted):
            yield Way(f"device.count={more}", more, wanted, use)
            break
    for words, other in _other_uses(request):
        if fits(dataclasses.replace(request, use=other), count, wanted):
            yield Way(words, count, wanted, other)


def _other_uses(request: FitRequest) -> Iterator[tuple[str, MemoryUse]]:
    use, wanted = request.use, request.use.context_length
    if not _pool_holds(request, wanted):
        pool = (request.facts.kv_cache(wanted, use.kv_dtype) or 0) * use.sequences
        yield f"{use.kv_pool_key}={pool}", dataclasses.replace(use, kv_pool_bytes=pool)
    if (
        request.device.kind == "gpu"
        and not use.as_stored
        and request.facts.parameters
        and BITS[use.weights_dtype] >= 16
    ):
        weights = request.facts.weights("int4") or 0
        yield (
            f"a model quantized to 4 bits (about {gib(weights)} of weights)",
            dataclasses.replace(use, weights_dtype="int4"),
        )


def _refusal(request: FitRequest, count: int, memory: Memory) -> str:
    said = f"{request.model} does not fit on {_where(request, count)}"
    if memory.needed > memory.usable:
        each = " of each" if count > 1 else ""
        said += f": it needs {gib(memory.needed)}{each} ({_parts(memory)}) and may use {gib(memory.usable)}"
        said += f" ({request.use.usable_key}={request.use.usable})" if request.use.usable < 1 else ""
    else:
        one = (request.facts.kv_cache(request.use.context_length, request.use.kv_dtype) or 0) * request.use.sequences
        said += (
            f": {request.use.context_length} tokens need a KV cache of {gib(one)}, and it has {gib(memory.kv_cache)}"
        )
    ways = ", or ".join(way.words for way in nearest(request, count))
    return f"{said}; {f'what fits: {ways}' if ways else 'no shorter context and no more devices make it fit'}"


def _shorter(request: FitRequest, count: int, length: int) -> str:
    held = _where(request, count)
    if not _pool_holds(request, request.use.context_length):
        held = f"the KV cache ({request.use.kv_pool_key}={request.use.kv_pool_bytes})"
    return f"{request.use.context_key}={length}, not {request.use.context_length}: longer does not fit into {held}"


def _where(request: FitRequest, count: int) -> str:
    memory = request.device.memory_bytes or 0
    if request.device.kind == "cpu":
        used = f", of which {gib(request.in_use)} is in use now" if request.in_use else ""
        return f"this machine's processor, with {gib(memory)} for this process{used}"
    return f"{count} × {_product(request)} with {gib(memory)}{' each' if count > 1 else ''}"


def _product(request: FitRequest) -> str:
    return request.device.product or request.device.kind


def _parts(memory: Memory) -> str:
    named = {
        "weights": memory.weights,
        "KV cache": memory.kv_cache,
        "activations": memory.activations,
        "programs": memory.overhead,
    }
    return " + ".join(f"{name} {gib(amount)}" for name, amount in named.items() if amount)


def line(memory: Memory) -> str:
    """Return an estimate as `rmlaunch plan` prints it."""
    return f"{gib(memory.needed)} of {gib(memory.usable)} on each device, estimated: {_parts(memory)}"
