"""A vendor's device that a config declares: found, planned, and refused where it cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engines.base import LaunchPlan, PlanError, RequestError, ResourceError
from launcher import dataclass_json, plan_json
from launcher.cli import main
from launcher.config import declared_device
from launcher.config.compose import normalized
from launcher.config.schema import DeviceConf
from launcher.config.sdk import CompilerConf
from launcher.deployments.ledger import Ledger
from launcher.devices.base import GIB, Resource
from launcher.devices.declared import Declared
from launcher.devices.pim import Pim
from launcher.planning.machine import Machine, this_machine
from launcher.planning.resolve import resolve
from launcher.planning.settle import settle
from tests.vendor_npu import BIAS, CONFIG_DIR, SIGNATURE, WEIGHT, sdk, weights


@pytest.fixture
def source(vendor: Path, tmp_path: Path) -> str:  # noqa: ARG001  (installed)
    return f"model.source=file:{weights(tmp_path / 'linear.safetensors', weight=WEIGHT, bias=BIAS)}"


def plan_of(tmp_path: Path, *overrides: str, to_launch: bool = False, replacing: str | None = None) -> LaunchPlan:
    settled = settle([*overrides, "model.id=linear"], this_machine(), CONFIG_DIR)
    engine, spec = resolve(settled.config, Machine(Ledger(tmp_path / "state", replacing), launches=to_launch))
    return engine.plan(spec)


@pytest.mark.parametrize("engine", ["triton", "torchserve"])
@pytest.mark.usefixtures("vendor")
def test_a_device_that_yaml_declares_is_planned_like_any(tmp_path: Path, source: str, engine: str) -> None:
    plan = plan_of(tmp_path, f"engine={engine}", "device=acme", source, *SIGNATURE, to_launch=True)

    assert (plan.device.kind, plan.device.ids, plan.device.product) == ("npu", (0,), "NPU-T1")
    assert (plan.device.memory_bytes, plan.device.assumed, plan.device.simulated) == (2 * GIB, False, False)
    assert plan.env["NPU_VISIBLE_DEVICES"] == "0"
    assert plan.builds[0].name == "npucc-compile"
    assert plan.model.path == f"{plan.builds[0].output}/model.npu"
    text = json.dumps(plan_json.public(plan))
    assert "native.py" in text
    assert "npu_last_error" in text


def test_auto_takes_an_engine_that_runs_libraries(source: str) -> None:
    settled = settle(["device=acme", source, *SIGNATURE], this_machine(), CONFIG_DIR)

    assert settled.config.engine.name == "triton"
    assert settled.reasons[0].startswith("engine=auto → triton (reads npu on npu, which safetensors is converted to; ")


def test_devices_are_chosen_by_number_and_named_by_their_nodes(tmp_path: Path, vendor: Path, source: str) -> None:
    words = ("engine=triton", "device=acme", source, *SIGNATURE)

    container = plan_of(tmp_path, *words, "device.ids=[1]", "runtime=docker").container
    assert container is not None
    assert container.nodes == (f"{vendor}/dev/npu1",)
    assert plan_of(tmp_path, *words, "device.count=2").device.env["NPU_VISIBLE_DEVICES"] == "0,1"
    with pytest.raises(ResourceError, match=r"device\.count=3: this machine has 2 of npu"):
        plan_of(tmp_path, *words, "device.count=3")


def test_a_launch_gets_no_device_that_a_running_deployment_has(
    tmp_path: Path,
    vendor: Path,  # noqa: ARG001
    source: str,
) -> None:
    words = ("engine=triton", "device=acme", source, *SIGNATURE)
    first = plan_of(tmp_path, *words, to_launch=True)
    claim = Ledger(tmp_path / "state").claim("first", (), plan_json.public(first))
    try:
        assert first.device.ids == (0,)
        assert plan_of(tmp_path, *words, to_launch=True).device.ids == (1,)
        assert plan_of(tmp_path, *words, "device.count=2").device.ids == (0, 1)  # a mere plan takes nothing away
        with pytest.raises(
            ResourceError, match=r"device\.ids=\[0\]: of this machine's npu, 0 is in use by deployment 'first'"
        ):
            plan_of(tmp_path, *words, "device.ids=[0]", to_launch=True)
        with pytest.raises(
            ResourceError, match=r"device\.count=2: of this machine's npu \[0, 1\], 0 is in use by deployment 'first'"
        ):
            plan_of(tmp_path, *words, "device.count=2", to_launch=True)
        shared = plan_of(tmp_path, *words, "device.ids=[0]", "device.share=true", to_launch=True)
        assert shared.device.ids == (0,)
        second = plan_of(tmp_path, *words, to_launch=True)
        other = Ledger(tmp_path / "state").claim("second", (), plan_json.public(second))
    finally:
        claim.release()
    try:  # device 0 is free again, but what is up keeps what it has
        assert plan_of(tmp_path, *words, to_launch=True, replacing="second").device.ids == (1,)
    finally:
        other.release()
    assert plan_of(tmp_path, *words, to_launch=True).device.ids == (0,)


def test_a_machine_without_it_can_plan_and_cannot_launch(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_ROOT", str(tmp_path / "none"))
    words = ("engine=triton", "device=acme", source, *SIGNATURE)

    assert plan_of(tmp_path, *words).device.assumed
    with pytest.raises(ResourceError, match=rf"no Acme NPU found: looked for device nodes {tmp_path}/none/npu\*;"):
        plan_of(tmp_path, *words, to_launch=True)


def test_what_is_missing_is_told_before_anything_is_made(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("engine=triton", "device=acme", "engine.environment=current", source, *SIGNATURE)

    with pytest.raises(ResourceError, match=r"device\.sdk\.runtime\.library='/no/lib\.so': there is no such file"):
        plan_of(tmp_path, *words, "device.sdk.runtime.library=/no/lib.so", to_launch=True)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(ResourceError, match="there is no program 'npucc'; install the compiler"):
        plan_of(tmp_path, *words, to_launch=True)


def test_a_file_that_is_compiled_already_is_served_as_it_is(tmp_path: Path, vendor: Path) -> None:  # noqa: ARG001
    file = tmp_path / "mine.npu"
    file.touch()

    plan = plan_of(tmp_path, "engine=triton", "device=acme", f"model.source=file:{file}", *SIGNATURE)

    assert (plan.model.format, plan.model.path, plan.builds) == ("npu", str(file), ())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("engine=llamacpp",), "engine=llamacpp runs no C library, which device.sdk is; use engine=triton or torch"),
        (("model.task=generate",), r"engine=triton on npu cannot do model\.task=generate; it can do: tensor"),
        (("device.sdk.nodes=dev/npu*",), r"device\.sdk\.nodes='dev/npu\*' must be a path with one \*"),
        (("device.sdk.nodes=null",), r"device\.sdk\.nodes is not set, and no plugin finds device\.kind='npu'"),
        (("device.assume=NPU-T9", "device.sdk.nodes=/no/npu*"), "is no Acme NPU that is known; known: NPU-T1"),
        (("device.sdk.nods=/x",), r"unknown key 'device\.sdk\.nods'; did you mean 'device\.sdk\.nodes'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, source: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        plan_of(tmp_path, "engine=triton", "device=acme", source, *SIGNATURE, *words)


# ------------------------------------------------------------------------------------------------------------ detecting


def test_nodes_are_devices_where_their_number_is_one(tmp_path: Path) -> None:
    for name in ("npu10", "npu2", "npu", "npux", "npu3ctl"):
        (tmp_path / name).touch()
    conf = DeviceConf("npu", sdk=sdk())
    assert conf.sdk is not None
    conf.sdk.nodes = f"{tmp_path}/npu*"

    found = declared_device.plugin(conf).detect()

    attributes = {"label": "Acme NPU", "product": "NPU-T1", "memory_bytes": 2 * GIB}
    assert found == (Resource(2, "npu", attributes), Resource(10, "npu", attributes))


def test_a_process_that_does_not_read_the_config_sees_nothing_of_it() -> None:
    assert declared_device.import_path("npu") == "launcher.devices.declared:Declared"
    assert declared_device.import_path("pim") == "launcher.devices.pim:Pim"
    assert declared_device.import_path("cpu") == ""
    assert Declared().detect() == ()
    assert Declared().visible_env((0,), ()) == {}
    assert Declared().nodes((0,)) == ()


# ------------------------------------------------------------------------------------------------------------------ PIM


def test_simulated_pim_is_called_simulated_everywhere(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["device=pim-simulator", source, *SIGNATURE, "model.id=gemv"]

    assert settle(words, this_machine(), CONFIG_DIR).reasons[-1] == (
        "device=pim is simulated (simulated PIM rank): this processor computes in its place"
    )
    plan = plan_of(tmp_path, *words)
    assert plan.device.simulated
    assert plan_json.public(plan)["device"]["simulated"] is True
    assert main.run(["plan", "--config-dir", CONFIG_DIR, *words]) == 0
    assert "engine       triton on pim [0], PIM-SIMULATOR, simulated\n" in capsys.readouterr().out


def test_simulated_ranks_are_as_many_as_are_asked_for_and_tagged() -> None:
    plugin = declared_device.plugin(DeviceConf("pim", count=3, sdk=sdk("pim-simulator")))

    assert [(rank.id, rank.type, rank.tags) for rank in plugin.detect()] == [
        (number, "pim", frozenset({"simulated"})) for number in range(3)
    ]
    assert plugin.shared  # a second deployment simulates ranks of its own


def test_real_ranks_are_found_by_their_plugin_whatever_runs_on_them(tmp_path: Path, source: str) -> None:
    """A runtime of the user's own, on UPMEM's ranks: no simulation, so the plugin looks for /dev/dpu_rank*."""
    words = ("engine=triton", "device=pim-simulator", "device.sdk.simulated=false", source, *SIGNATURE)
    conf = settle(words, this_machine(), CONFIG_DIR).config.device

    assert isinstance(declared_device.plugin(conf), Pim)
    with pytest.raises(ResourceError, match=r"no PIM device found: looked for UPMEM ranks /dev/dpu_rank0"):
        plan_of(tmp_path, *words, to_launch=True)


def test_without_a_runtime_pim_serves_nothing() -> None:
    with pytest.raises(PlanError, match="no engine can use device=pim"):
        settle(["device=pim"], this_machine())
    assert isinstance(declared_device.plugin(DeviceConf("pim")), Pim)


def test_a_table_of_exit_codes_survives_being_kept() -> None:
    """Composed configs are kept as JSON, where every key is a text."""
    kept = json.loads(json.dumps({"exit_codes": {3: "three"}}))

    assert dataclass_json.load(CompilerConf, kept).exit_codes == {3: "three"}


def test_the_example_of_the_page_for_vendors_plans(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/npu-vendors.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "device").mkdir()
    (tmp_path / "device/acme.yaml").write_text(example)
    (tmp_path / "net.onnx").touch()
    words = [f"model.source=file:{tmp_path}/net.onnx", "device=acme", "device.assume=ACME-1", "engine=triton"]
    settled = settle(
        normalized([*words, *SIGNATURE, "model.id=net", "model.build.npu.level=3"]),
        this_machine(),
        str(tmp_path),
    )

    engine, spec = resolve(settled.config, Machine(Ledger(tmp_path / "state")))
    plan = engine.plan(spec)

    (step,) = plan.builds
    assert step.argv[:5] == ("acmecc", "--target", "ACME-1", "--config", "{files}/acme.conf")
    assert step.files == {"acme.conf": "opt_level = 3\n"}
    assert step.env == {"ACME_LOG": "warn"}
    assert plan.env["ACME_VISIBLE_DEVICES"] == "0"
    assert plan.model.path.endswith("/model.acme")
