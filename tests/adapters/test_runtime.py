"""The table of a closed runtime's functions: refused where it cannot be, and handed to the process that serves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engines.base import ConfigError, Device, PlanError, ResourceError, TensorSpec
from launcher.config.sdk import FunctionConf, LibraryConf, SdkConf
from launcher.planning.library import RuntimeDeclaration

FUNCTIONS = {
    "open": FunctionConf("npu_open", ["device:int64", "&handle"]),
    "load": FunctionConf("npu_load", ["handle", "path", "0", "'fast: yes'"], "model"),
    "run": FunctionConf("npu_run", ["model", "input0", "output0", "rows:size"]),
    "error": FunctionConf("npu_error", ["status"], "text"),
}
Y = TensorSpec("y", "float32", (-1, 2))


def declaration(visible: str | None = None, **functions: FunctionConf | None) -> RuntimeDeclaration:
    table = {role: function for role, function in {**FUNCTIONS, **functions}.items() if function}
    library = LibraryConf("/opt/npu/lib.so", ["libdep.so"], functions=table)
    return RuntimeDeclaration(SdkConf("NPU", visible_variable=visible, runtime=library))


def test_the_serving_process_is_given_the_table_and_the_devices() -> None:
    given = declaration().given(Device("npu", (2, 3)), [Y])

    assert given == {
        "library": "/opt/npu/lib.so",
        "preload": ["libdep.so"],
        "devices": [2, 3],
        "functions": {role: dataclasses.asdict(function) for role, function in FUNCTIONS.items()},
    }


def test_devices_are_counted_from_0_where_only_they_are_visible() -> None:
    assert declaration("NPU_VISIBLE").given(Device("npu", (2, 3)), [Y])["devices"] == [0, 1]


def test_a_size_that_cannot_be_known_before_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^model\.outputs: y: float32\[2, any\] has a free size after the first"):
        declaration().given(Device("npu"), [TensorSpec("y", "float32", (2, -1))])


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({"run": None}, r"functions\.run is missing; a runtime has at least load and run"),
        ({"warm": FunctionConf("w")}, r"functions\.warm is not known; known: load, run, open"),
        ({"run": FunctionConf("system; rm")}, r"functions\.run\.symbol='system; rm' is no name of a C function"),
        ({"run": FunctionConf("f", returns="text")}, r"functions\.run\.returns='text' is not allowed; allowed: sta"),
        ({"run": FunctionConf("f", ["sauce"])}, r"functions\.run\.arguments: 'sauce' means nothing; known: device, "),
        ({"run": FunctionConf("f", ["rows:int128"])}, r"'rows:int128': 'int128' is no type; known: int8"),
        ({"load": FunctionConf("f", ["input0"], "model")}, r"functions\.load\.arguments: 'input0' means nothing"),
        ({"load": FunctionConf("f", ["path"])}, r"functions\.load gives no model: return it, or have &model among"),
        ({"open": FunctionConf("f", ["device"])}, r"functions\.open gives no handle: return it, or have &handle"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_is_refused_with_what_can(functions: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^device\.sdk\.runtime\..*{words}"):
        declaration(**functions)


def test_a_library_that_is_named_by_a_path_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ResourceError, match=r"^device\.sdk\.runtime\.library='/opt/npu/lib\.so': there is no such file"
    ):
        declaration().check_there()

    (tmp_path / "lib.so").touch()
    RuntimeDeclaration(SdkConf("N", runtime=LibraryConf(f"{tmp_path}/lib.so", ["libdep.so"], functions=FUNCTIONS)))
