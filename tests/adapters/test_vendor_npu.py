"""A vendor's NPU from its YAML to a tensor that comes back: compiled, served by real engines, crashed, stopped.

The vendor does not exist (tests/vendor_npu); its compiler and its runtime are real, and the numbers are theirs.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from engines.base import DeploymentError, InferenceError
from launcher import launch
from launcher.cli import main
from launcher.serving.engine import ServingEngine
from launcher.supervise.lifecycle import Phase
from tests.supervision import marked_processes
from tests.vendor_npu import BIAS, CONFIG_DIR, SIGNATURE, WEIGHT, linear, weights

# The first start makes an environment.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ENGINES = ["triton", "torchserve"]
X = np.array([[1, 2, 3], [4, 5, 6.5]], "float32")


@pytest.fixture
def source(vendor: Path, tmp_path: Path) -> str:  # noqa: ARG001  (installed)
    file = weights(tmp_path / "linear.safetensors", weight=WEIGHT, bias=BIAS)
    return f"model.source=file:{file}"


def served(engine: str, *words: str) -> ServingEngine:
    return launch(f"engine={engine}", *words, *SIGNATURE, "model.id=linear", config_dir=CONFIG_DIR)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_compiled_and_served_and_nothing_is_left(
    vendor: Path, source: str, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(engine, "device=acme", "device.ids=[1]", "+model.build.npu.activation=relu", source) as serving:
        answer = serving.infer({"x": -X})
        step, run_dir = serving.plan.builds[0], serving.plan.run_dir
        assert main.run(["artifact", "list", "--json"]) == 0
        (listed,) = [item for item in json.loads(capsys.readouterr().out) if item["id"] == Path(step.output).name]

    np.testing.assert_allclose(answer["y"], np.maximum(linear(-X), 0), rtol=1e-6)
    assert (listed["used_by"], listed["target"], listed["compiler"]) == ([serving.name], "NPU-T1", "npucc 1.4.0")
    stopped = serving.stop()
    assert stopped is not None
    assert (stopped.phase, stopped.leftovers) == (Phase.STOPPED, ())
    assert not Path(run_dir).exists()
    assert marked_processes(run_dir) == []
    with served(engine, "device=acme", "device.ids=[1]", source) as again:  # its device is free, and it compiles anew
        np.testing.assert_allclose(again.infer({"x": X})["y"], linear(X), rtol=1e-6)
        assert again.plan.builds[0].output != step.output
    assert {node.name for node in (vendor / "dev").iterdir()} == {"npu0", "npu1"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_crash_of_its_library_ends_a_worker_and_the_supervisor_brings_it_back(source: str, engine: str) -> None:
    words = ("device=acme", "+model.build.npu.debug_trap=on", "supervise.liveness_period_s=1")
    with served(engine, *words, source) as serving:
        supervisor = serving.news.supervisor
        with pytest.raises(InferenceError):
            serving.infer({"x": -X})
        answer = None
        deadline = time.monotonic() + 120
        while answer is None and time.monotonic() < deadline:
            with contextlib.suppress(InferenceError):
                answer = serving.infer({"x": X})

        assert answer is not None
        np.testing.assert_allclose(answer["y"], linear(X), rtol=1e-6)
        assert serving.news.supervisor == supervisor
        logs = "".join(log.read_text() for log in Path(serving.news.log).parent.iterdir())
        assert "Fatal Python error: Segmentation fault" in logs


@pytest.mark.parametrize("engine", ENGINES)
def test_a_crash_while_it_loads_is_diagnosed(source: str, engine: str) -> None:
    words = ("device=acme", "+model.build.npu.debug_trap=load", "supervise.max_crashes=1", source)

    with pytest.raises(
        DeploymentError, match=r"exited 1: native code in it crashed, of a library that computes the mo"
    ):
        served(engine, *words).start()


def test_a_device_that_somebody_else_holds_is_told_in_the_librarys_words(vendor: Path, source: str) -> None:
    import fcntl

    with (vendor / "dev/npu0").open("w") as node:
        fcntl.flock(node, fcntl.LOCK_EX)
        with pytest.raises(DeploymentError, match=rf"npu_open failed with 2: {vendor}/dev/npu0 is in use by another"):
            served("triton", "device=acme", "supervise.max_crashes=1", source).start()


@pytest.mark.parametrize("engine", ENGINES)
def test_pim_is_served_on_a_simulator_that_is_called_one(
    source: str, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(engine, "device=pim-simulator", source) as serving:
        answer = serving.infer({"x": X})
        assert main.run(["status", serving.name]) == 0

    np.testing.assert_allclose(answer["y"], X @ WEIGHT.T, rtol=1e-6)  # the simulator has no bias
    assert serving.reasons[-1].startswith("device=pim is simulated")
    assert "device       pim (simulated)\n" in capsys.readouterr().out
