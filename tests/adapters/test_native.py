"""The adapter that serves: real C libraries through ctypes, without an engine around it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import BinaryRuntimeAdapter, LibraryError, Native
from tensor_model import Tensor
from tensors import load

from engines.base import Device
from launcher.planning.library import RuntimeDeclaration
from tests.vendor_npu import BIAS, WEIGHT, linear, sdk, weights

X, Y = Tensor("x", "float32", (-1, 3)), Tensor("y", "float32", (-1, 2))
ROWS = np.array([[1, 2, 3], [-4, 5, 6.5], [0, 0, 0]], "float32")

#: loads the model that its arguments name and computes; for a test of what a crash does to the process
_PROGRAM = """
import json, sys
sys.path[:0] = ["templates/models"]
from tests.adapters.test_native import ROWS, X, Y
from native import Native
Native(sys.argv[1], [X], [Y], json.loads(sys.argv[2])).run({"x": -ROWS})
"""


def table(device: str = "acme", **changes: Any) -> dict[str, Any]:
    return {**RuntimeDeclaration(sdk(device)).given(Device("npu", (0,)), ()), **changes}


def changed(role: str, **changes: Any) -> dict[str, Any]:
    """The table with one function declared otherwise."""
    given = table()
    return {**given, "functions": {**given["functions"], role: {**given["functions"][role], **changes}}}


def compiled(folder: Path, *lines: str) -> str:
    source = weights(folder / "linear.safetensors", weight=WEIGHT, bias=BIAS)
    (folder / "npucc.conf").write_text("\n".join(lines))
    words = ["npucc", "--target", "NPU-T1", "--config", str(folder / "npucc.conf"), "-o", str(folder / "m.npu")]
    subprocess.run([*words, str(source)], check=True, stdout=subprocess.DEVNULL)
    return str(folder / "m.npu")


@pytest.fixture
def file(vendor: Path, tmp_path: Path) -> str:  # noqa: ARG001  (the compiler)
    return compiled(tmp_path)


@pytest.fixture
def model(file: str) -> Iterator[Native]:
    serving = Native(file, [X], [Y], table())
    yield serving
    serving.close()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_it_computes_what_numpy_does(model: Native, rows: int) -> None:
    answer = model.run({"x": ROWS[:rows]})

    np.testing.assert_allclose(answer["y"], linear(ROWS[:rows]), rtol=1e-6)
    assert answer["y"].dtype == np.float32


def test_arrays_that_are_not_contiguous_are_computed_as_they_are_seen(model: Native) -> None:
    np.testing.assert_allclose(model.run({"x": ROWS[::-1]})["y"], linear(ROWS[::-1]), rtol=1e-6)


def test_what_the_compiler_was_told_is_in_the_numbers(vendor: Path, tmp_path: Path) -> None:  # noqa: ARG001
    loaded = load(compiled(tmp_path, "activation = relu"), "npu", "npu", inputs=[X], outputs=[Y], library=table())

    np.testing.assert_allclose(loaded.run({"x": ROWS})["y"], np.maximum(linear(ROWS), 0), rtol=1e-6)
    loaded.close()


def test_a_device_is_held_until_it_is_closed(model: Native, file: str) -> None:
    with pytest.raises(LibraryError, match=r"^npu_open failed with 2: \S+/npu0 is in use by another process$"):
        Native(file, [X], [Y], table())

    model.close()
    model.close()
    Native(file, [X], [Y], table()).close()


def test_the_second_device_is_another(model: Native, file: str) -> None:
    other = Native(file, [X], [Y], table(devices=[1]))

    np.testing.assert_array_equal(other.run({"x": ROWS})["y"], model.run({"x": ROWS})["y"])
    other.close()


def test_a_variable_hides_devices(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", "1")
    Native(file, [X], [Y], table()).close()

    with pytest.raises(LibraryError, match=r"^npu_open failed with 1: device 1 is not visible$"):
        Native(file, [X], [Y], table(devices=[1]))


# ------------------------------------------------------------------------------------------------- the library's words


def test_a_file_that_it_does_not_read_is_refused_in_its_words(file: str, tmp_path: Path) -> None:
    data = Path(file).read_bytes()
    broken = {"other": b"GGUF" + data[4:], "newer": data[:4] + b"\x02" + data[5:], "torn": data[:-4] + b"abcd"}
    words = {"other": "is no .npu file", "newer": "was made by npucc 2, this runtime reads 1", "torn": "is damaged"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LibraryError, match=rf"^npu_load failed with 3: {tmp_path}/{name} {words[name]}"):
            Native(str(tmp_path / name), [X], [Y], table())


def test_sizes_that_are_not_the_files_fail_when_zeros_are_computed(file: str) -> None:
    wrong = Native(file, [X], [Tensor("y", "float32", (-1, 5))], table())

    with pytest.raises(ValueError, match=r"cannot compute zeros.*npu_run failed with 4: 12 bytes in and 20 out do not"):
        wrong.warm_up()
    wrong.close()


def test_without_a_function_for_words_the_number_stands_alone(file: str) -> None:
    given = table()
    functions = {role: function for role, function in given["functions"].items() if role != "error"}

    with pytest.raises(LibraryError, match=r"^npu_open failed with 1$"):
        Native(file, [X], [Y], {**given, "devices": [7], "functions": functions})


def test_a_library_or_a_function_that_is_not_there_is_named(file: str) -> None:
    with pytest.raises(LibraryError, match=r"^cannot load the library libnone\.so: .*cannot open shared object file"):
        Native(file, [X], [Y], table(library="libnone.so"))
    with pytest.raises(LibraryError, match=r"^cannot load the library libnone\.so"):
        Native(file, [X], [Y], table(preload=["libnone.so"]))
    with pytest.raises(LibraryError, match=r"libnpu_runtime\.so has no function 'npu_launch'$"):
        Native(file, [X], [Y], changed("run", symbol="npu_launch"))


def test_a_tensor_that_the_model_does_not_have_is_named(file: str) -> None:
    wrong = Native(file, [X], [Y], changed("run", arguments=["model", "input1"]))

    with pytest.raises(LibraryError, match=r"^npu_run wants 'input1', but the model has no such tensor$"):
        wrong.run({"x": ROWS})
    wrong.close()


def test_without_a_model_nothing_runs(vendor: Path) -> None:  # noqa: ARG001
    adapter = BinaryRuntimeAdapter(table())

    with pytest.raises(LibraryError, match=r"libnpu_runtime\.so has no model loaded"):
        adapter.run([ROWS], [ROWS])
    adapter.close()


# ---------------------------------------------------------------------------------------------------------- a crash


@pytest.mark.parametrize("trap", ["on", "load"])
def test_a_crash_ends_the_process_that_serves_and_says_where(vendor: Path, tmp_path: Path, trap: str) -> None:  # noqa: ARG001
    file = compiled(tmp_path, f"debug_trap = {trap}")

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, file, json.dumps(table())], capture_output=True, text=True, check=False
    )

    assert done.returncode == -signal.SIGSEGV
    assert done.stderr.startswith("Fatal Python error: Segmentation fault")
    assert "native.py" in done.stderr


# ------------------------------------------------------------------------------------------------- another kind of API


def test_matrix_times_vector_on_the_simulator_of_pim(vendor: Path, tmp_path: Path) -> None:  # noqa: ARG001
    matrix = np.random.default_rng(7).standard_normal((200, 33), "float32")
    file = weights(tmp_path / "gemv.safetensors", weight=matrix)
    vectors = np.random.default_rng(8).standard_normal((4, 33), "float32")
    model = Native(
        str(file), [Tensor("x", "float32", (-1, 33))], [Tensor("y", "float32", (-1, 200))], table("pim-simulator")
    )

    np.testing.assert_allclose(model.run({"x": vectors})["y"], vectors @ matrix.T, rtol=1e-4, atol=1e-5)
    model.close()


def test_a_null_pointer_is_a_failure_in_the_librarys_words(vendor: Path, tmp_path: Path) -> None:  # noqa: ARG001
    file = weights(tmp_path / "gemv.safetensors", other=WEIGHT)
    given = table("pim-simulator")

    with pytest.raises(LibraryError, match=r"^pim_load gave no model: \S+ has no float32 tensor weight$"):
        Native(str(file), [X], [Y], given)
    given["functions"]["open"]["arguments"] = ["1:uint32", "'backend=hw'"]
    with pytest.raises(LibraryError, match=r"^pim_alloc gave no handle: profile backend=hw: this library has only"):
        Native(str(file), [X], [Y], given)
