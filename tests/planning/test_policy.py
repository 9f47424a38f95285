"""What `auto` means, and the reason that is given for it."""

from __future__ import annotations

import pytest

from engines.base import Capabilities, PlanError
from launcher.planning.policy import ABSENT, Device, choose_device, choose_engine

LLAMACPP = Capabilities(formats={"cpu": {"generate": ("gguf",)}, "gpu": {"generate": ("gguf",)}})
TRITON = Capabilities(
    formats={
        "cpu": {"generate": ("safetensors",), "tensor": ("onnx",)},
        "gpu": {"generate": ("safetensors",)},
        "rbln": {"generate": ("rbln",)},
    }
)
BOTH = {"llamacpp": LLAMACPP, "triton": TRITON}
DEVICES = ("rbln", "furiosa", "gpu", "pim", "cpu")
ENGINES = ("llamacpp", "triton")


def here(*found: str, busy: str = "", **optimized_for: tuple[str, ...]) -> list[Device]:
    """The kinds of `DEVICES`, of which this machine has those in `found`, and has `busy` in use."""
    missing = {kind: "" if kind in found else ABSENT for kind in DEVICES} | {busy: "is in use by deployment 'a'"}
    return [Device(kind, missing[kind], optimized_for.get(kind, ())) for kind in DEVICES]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["cpu"], ("cpu", "device=auto → cpu (no rbln, furiosa, gpu, pim here)")),
        (["cpu", "gpu"], ("gpu", "device=auto → gpu (no rbln, furiosa here)")),
        (["cpu", "gpu", "rbln"], ("rbln", "device=auto → rbln")),
        (["cpu", "pim", "furiosa"],
         ("cpu", "device=auto → cpu (no rbln, gpu here; furiosa, pim cannot be used by llamacpp or triton)")),
    ],
)  # fmt: skip
def test_the_best_device_that_is_there_and_can_be_used(found: list[str], chosen: tuple[str, str]) -> None:
    assert choose_device(here(*found), BOTH) == chosen


def test_a_device_that_the_engine_cannot_use_is_passed_over() -> None:
    assert choose_device(here("rbln", "gpu", "cpu"), {"llamacpp": LLAMACPP}) == (
        "gpu",
        "device=auto → gpu (rbln cannot be used by llamacpp; no furiosa here)",
    )


def test_a_device_that_another_deployment_has_is_passed_over_and_that_is_said() -> None:
    assert choose_device(here("rbln", "gpu", busy="rbln"), BOTH) == (
        "gpu",
        "device=auto → gpu (rbln is in use by deployment 'a'; no furiosa here)",
    )


def test_a_goal_puts_the_devices_that_are_optimized_for_it_first() -> None:
    devices = here("gpu", "cpu", gpu=("throughput",), cpu=("memory",))

    assert choose_device(devices, BOTH, goal="memory") == ("cpu", "device=auto → cpu (made for memory)")
    assert choose_device(devices, BOTH, goal="throughput") == ("gpu", "device=auto → gpu (made for throughput)")
    assert choose_device(devices, BOTH, goal="energy") == ("gpu", "device=auto → gpu (no rbln, furiosa here)")


NPU_ONLY = Capabilities(formats={"furiosa": {"generate": ("fxb",)}})


def test_an_engine_that_was_named_is_planned_for_a_device_that_is_not_here() -> None:
    assert choose_device(here("gpu", "cpu"), {"furiosa-llm": NPU_ONLY}) == (
        "furiosa",
        "device=auto → furiosa (the best that furiosa-llm can use; there is none here)",
    )


def test_no_usable_device_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(PlanError) as caught:
        choose_device(here("gpu", "cpu"), {"a": NPU_ONLY, "b": NPU_ONLY})

    assert str(caught.value) == "no device of this machine (gpu, cpu) can be used by engine a or b"


@pytest.mark.parametrize(
    ("kind", "model_format", "chosen"),
    [
        ("cpu", "gguf",
         ("llamacpp", "engine=auto → llamacpp (reads gguf on cpu; triton would need it converted)")),
        ("cpu", "safetensors", ("triton", "engine=auto → triton (reads safetensors on cpu)")),
        ("rbln", "safetensors",
         ("triton", "engine=auto → triton (reads rbln on rbln, which safetensors is converted to)")),
    ],
)  # fmt: skip
def test_the_engine_that_reads_the_format_as_it_is(kind: str, model_format: str, chosen: tuple[str, str]) -> None:
    assert choose_engine(kind, "generate", model_format, BOTH, ENGINES, leads_to={"safetensors", "rbln"}) == chosen


def test_a_format_that_nothing_reads_or_converts_is_an_error() -> None:
    with pytest.raises(PlanError, match="no engine reads onnx on device=cpu, nor what it can be converted to"):
        choose_engine("cpu", "generate", "onnx", BOTH, ENGINES, leads_to={"onnx"})


def test_why_the_others_were_not_taken_is_said() -> None:
    engines = {**BOTH, "vllm": TRITON, "transformers": LLAMACPP}
    order = ("llamacpp", "vllm", "triton")

    def choose(model_format: str, *leads_to: str) -> str:
        return choose_engine("cpu", "generate", model_format, engines, order, leads_to)[1]

    assert choose("gguf", "gguf", "safetensors") == (
        "engine=auto → llamacpp (reads gguf on cpu; transformers follows in policy.engines; vllm, triton would need it "
        "converted)"
    )
    assert choose("safetensors", "safetensors", "rbln") == (
        "engine=auto → vllm (reads safetensors on cpu; triton follows in policy.engines)"
    )


def test_under_a_goal_a_conversion_is_no_reason_to_pass_an_engine_over() -> None:
    order, leads_to = ("triton", "llamacpp"), {"gguf", "safetensors"}

    assert choose_engine("cpu", "generate", "gguf", BOTH, order, leads_to, "memory")[1] == (
        "engine=auto → triton (first for memory; reads safetensors on cpu, which gguf is converted to; llamacpp "
        "follows in policy.engines)"
    )


def test_the_order_of_preference_does_not_depend_on_the_order_of_discovery() -> None:
    alike = {"zeta": LLAMACPP, "triton": LLAMACPP, "llamacpp": LLAMACPP}

    assert choose_engine("cpu", "generate", "gguf", alike, ENGINES)[0] == "llamacpp"
    assert choose_engine("cpu", "generate", "gguf", {"zeta": LLAMACPP, "triton": LLAMACPP}, ENGINES)[0] == "triton"


def test_a_device_that_no_engine_can_use_is_an_error_that_lists_the_engines() -> None:
    with pytest.raises(PlanError) as caught:
        choose_engine("pim", "generate", "gguf", BOTH, ENGINES)

    assert str(caught.value) == "no engine can use device=pim; engines: llamacpp, triton"


def test_the_order_is_the_users() -> None:
    alike = {"triton": TRITON, "vllm": TRITON}

    assert choose_engine("cpu", "generate", "safetensors", alike, ("vllm", "triton"))[0] == "vllm"
    assert choose_engine("cpu", "generate", "safetensors", alike, ("triton", "vllm"))[0] == "triton"
    assert choose_device([Device("cpu"), Device("gpu")], BOTH)[0] == "cpu"


def test_an_engine_that_cannot_do_the_task_is_passed_over() -> None:
    assert choose_engine("cpu", "tensor", "onnx", BOTH, ENGINES)[0] == "triton"
    with pytest.raises(PlanError, match=r"no engine does model\.task=tensor on device=gpu; engines: llamacpp, triton"):
        choose_engine("gpu", "tensor", "onnx", BOTH, ENGINES)
    with pytest.raises(PlanError, match=r"no device .* \(gpu\) can be used by engine .* for model.task=tensor"):
        choose_device(here("gpu"), BOTH, "tensor")
