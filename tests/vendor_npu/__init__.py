"""A vendor that does not exist, as users meet one: a compiler and a runtime without source, built here with gcc.

`installed` makes what such a vendor's installer would: bin/npucc, lib/libnpu_runtime.so, and device nodes below dev/.
"""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config.compose import compose
from launcher.config.sdk import SdkConf

SOURCES = Path(__file__).parent
CONFIG_DIR = str(SOURCES / "conf")
_GCC = ("gcc", "-std=c11", "-D_DEFAULT_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror")

#: the signature of the linear layer that `weights` has, as overrides
SIGNATURE = (
    "model.task=tensor",
    "model.inputs=[{name: x, dtype: float32, shape: [-1, 3]}]",
    "model.outputs=[{name: y, dtype: float32, shape: [-1, 2]}]",
)
WEIGHT = np.array([[1, 2, 3], [-1, 0, 0.5]], "float32")
BIAS = np.array([0.5, -1], "float32")


def installed(folder: Path) -> Path:
    """Build everything below `folder`; returns it."""
    for name in ("bin", "lib", "dev"):
        (folder / name).mkdir()
    _compile("npucc.c", folder / "bin/npucc")
    _compile("npu_runtime.c", folder / "lib/libnpu_runtime.so", "-shared", "-fPIC")
    _compile("pim_simulator.c", folder / "lib/libpim_simulator.so", "-shared", "-fPIC")
    for number in range(2):
        (folder / f"dev/npu{number}").touch()
    return folder


def sdk(device: str = "acme") -> SdkConf:
    """`device.sdk` of a device of conf/, as it composes where the installation is."""
    return copy.deepcopy(_sdk(device, os.environ.get("NPU_ROOT"), os.environ.get("NPU_LIBRARY")))


@cache
def _sdk(device: str, *_: str | None) -> SdkConf:
    declared = compose([f"device={device}"], CONFIG_DIR).device.sdk
    assert declared is not None
    return declared


def weights(file: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    """A .safetensors file of float32 tensors."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        start, data = len(data), data + np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def linear(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the layer computes, by numpy."""
    return np.asarray(x @ WEIGHT.T + BIAS)


def _compile(source: str, output: Path, *flags: str) -> None:
    subprocess.run([*_GCC, *flags, "-o", str(output), str(SOURCES / source)], check=True)
