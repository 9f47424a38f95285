"""Made-up /dev, /sys and /proc trees, and what vendors' tools say in them. None of this was seen on real hardware."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent.parent / "fakes"


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Path below `root` → what is in it."""
    for name, said in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(said.encode() if isinstance(said, str) else said)
    return root


def pci(root: Path, address: str, vendor: str, device: str, driver: str | None = None, **files: str) -> None:
    place = root / "sys/bus/pci/devices" / address
    write(place, {"vendor": f"0x{vendor}\n", "device": f"0x{device}\n", "class": "0x120000\n", **files})
    if driver:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


def smi(root: Path, answers: Mapping[str, str | bytes], folder: str = "usr/bin", name: str = "rbln-smi") -> Path:
    """The made-up tool in `folder`; `answers` are the files that it reads."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(FAKES / "rbln-smi", place / name)
    write(place, answers)
    return place


def npu(number: int, **changes: Any) -> dict[str, Any]:
    """One device of `rbln-smi -g -j`, in the shape of the vendor's Go structs."""
    return {
        "group_id": "0",
        "npu": number,
        "name": "RBLN-CA25",
        "sid": "0000000000225091",
        "uuid": f"3f9a1c2e-0000-4000-8000-00000000000{number}",
        "device": f"rbln{number}",
        "status": "normal",
        "fw_ver": "3.5.1",
        "pci": {
            "dev": "1250",
            "bus_id": f"0000:5{number}:00.0",
            "numa_node": "0",
            "link_speed": "32GT/s",
            "link_width": "16",
        },
        "memory": {"used": "0", "total": "16877879296"},
        "util": "0.0",
        "temperature": "36C",
        "card_power": "52.1W",
        "pstate": "P14",
        "board_info": "RBLN-CA25",
        "location": number,
    } | changes


def report(*npus: Mapping[str, Any], contexts: Any = (), driver: str = "3.5.0") -> str:
    return json.dumps({"KMD_version": driver, "devices": npus, "contexts": contexts}, indent=2)
