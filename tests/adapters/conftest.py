"""A vendor's installation, built from C once for all of these tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vendor_npu import installed


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("vendor"))


@pytest.fixture
def vendor(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is where the vendor's installer would have put it: the compiler on PATH, the devices where they are found."""
    monkeypatch.setenv("PATH", f"{built / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("NPU_ROOT", str(built / "dev"))
    monkeypatch.setenv("NPU_LIBRARY", str(built / "lib/libnpu_runtime.so"))
    monkeypatch.setenv("PIM_LIBRARY", str(built / "lib/libpim_simulator.so"))
    monkeypatch.delenv("NPU_VISIBLE_DEVICES", raising=False)
    return built
