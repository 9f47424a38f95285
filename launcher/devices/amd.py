"""AMD's GPUs through amdsmi, if it can be imported: it comes with ROCm, and is not among our requirements.

Nobody has run this against a GPU: the names are those of amdsmi 7.0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.devices.base import Problem, Resource, Survey, known
from launcher.devices.host import number, printable

VENDOR = "1002"
_MIB = 1 << 20


def look(root: Path, first: int) -> Survey:
    """Return the GPUs that ROCm can use (/dev/kfd), numbered from `first`; `index` is AMD's own number."""
    if not (root / "dev/kfd").exists():
        return Survey()
    if find_spec("amdsmi") is None:
        what = "there is /dev/kfd of AMD's driver, but amdsmi cannot be imported, without which its GPUs are not seen"
        return Survey(problems=(Problem(what, "install the amdsmi of your ROCm where rmlaunch runs"),))
    amdsmi = import_module("amdsmi")
    try:
        amdsmi.amdsmi_init()
    except Exception as exc:  # noqa: BLE001  (its exceptions change with its release)
        return Survey(problems=(Problem(f"amdsmi does not start: {exc}", "see what amd-smi says"),))
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        found = tuple(_resource(amdsmi, index, first, handle) for index, handle in enumerate(handles))
        driver = next((gpu.attributes["driver"] for gpu in found if "driver" in gpu.attributes), None)
        return Survey(found, (), {"amdgpu": driver} if driver else {})
    finally:
        amdsmi.amdsmi_shut_down()


def _resource(amdsmi: Any, index: int, first: int, handle: Any) -> Resource:
    asic = _mapping(_ask(amdsmi.amdsmi_get_gpu_asic_info, handle))
    memory = _mapping(_ask(amdsmi.amdsmi_get_gpu_vram_usage, handle))
    driver = _mapping(_ask(amdsmi.amdsmi_get_gpu_driver_info, handle))
    total, used = number(memory.get("vram_total")), number(memory.get("vram_used"))
    attributes: dict[str, Any] = {
        "vendor": "amd",
        "index": index,
        "product": printable(asic.get("market_name")),
        "uuid": printable(_ask(amdsmi.amdsmi_get_gpu_device_uuid, handle)),
        "pci": printable(_ask(amdsmi.amdsmi_get_gpu_device_bdf, handle)),
        "memory_bytes": total * _MIB if total else None,
        "used_bytes": used * _MIB if total and used is not None else None,
        "driver": printable(driver.get("driver_version")),
    }
    return Resource(first + index, "gpu", known(attributes), frozenset({"amd"}))


def _ask(function: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return function(handle)
    except Exception:  # noqa: BLE001  (a GPU may not know the question; others are still asked)
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
