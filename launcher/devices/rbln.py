"""Rebellions NPUs: ATOM (RBLN-CA*) and REBEL (RBLN-CR*).

Nobody has run this against an NPU: the names and sizes are those of the vendor's own tools at SDK 0.12.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any, ClassVar

from engines.base import ContainerSettings
from engines.rbln_sdk import NEWEST, SDKS, chip
from launcher.devices import rbln_smi
from launcher.devices.base import (
    GIB,
    Capability,
    HostDevices,
    Portal,
    Problem,
    Resource,
    Surroundings,
    Survey,
    known,
)
from launcher.devices.host import PciFunction, indexed_nodes, names, number, pci_functions, text
from launcher.devices.rbln_smi import Npu, Report
from launcher.devices.unbound import Card, unbound

_VENDOR = "1eff"
#: PCI device → product, from the vendor's feature discovery, which lacks RBLN-CR13
_PCI_PRODUCTS = {
    "1020": "RBLN-CA02", "1021": "RBLN-CA02", "1120": "RBLN-CA12", "1121": "RBLN-CA02", "1150": "RBLN-CA15",
    "1220": "RBLN-CA22", "1221": "RBLN-CA22", "1250": "RBLN-CA25", "2030": "RBLN-CR03",
}  # fmt: skip
#: number in /sys/class/rebellions/rbln*/status → meaning; a later driver put one in after 1, so 3 and 4 are unclear
_STATUS = {0: "ready", 1: "busy", 2: "starting", 3: "fault or starting", 4: "finished or fault", 5: "finished"}


_SDK_PACKAGES = ("rebel-compiler", "optimum-rbln", "vllm-rbln", "torch-rbln")
#: release of the SDK → release of the driver that came with it, as far as known
_DRIVERS = {(0, 12): (3, 5)}


class Rbln(HostDevices):
    """Rebellions' NPUs: found by their nodes, described by sysfs and rbln-smi."""

    kind = "rbln"
    label = "RBLN NPU"
    looked_for: ClassVar[str] = "device nodes /dev/rbln0, /dev/rbln1, …"
    products: ClassVar[Mapping[str, int]] = {
        "RBLN-CA12": 16 * GIB,
        "RBLN-CA22": 16 * GIB,
        "RBLN-CA25": 16 * GIB,
        "RBLN-CR03": 144 * GIB,
        "RBLN-CR13": 144 * GIB,
    }
    assumed_product = "RBLN-CA25"
    portals: ClassVar[Mapping[str, Portal]] = {
        "rebel-compiler": Portal("https://pypi.rbln.ai/simple", "Rebellions' portal, which needs an account")
    }

    def visible_env(self, ids: tuple[int, ...], found: Sequence[Resource]) -> Mapping[str, str]:
        """Return the SDK's variable with the position of each of `ids` among the nodes that are present."""
        # The SDK counts the nodes that are present: if rbln0 is missing, its 0 is rbln1.
        present = [resource.id for resource in found]
        positions = [present.index(number) if present else number for number in ids]
        # The newest SDK's name, which our environments pin; an engine on an older one adds its own (`rbln_sdk.SDKS`).
        return {NEWEST.visible_devices: ",".join(map(str, positions))}

    def nodes(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Return the NPUs' nodes and /dev/rsd0, without which the runtime counts no devices at all."""
        return (*(f"/dev/rbln{number}" for number in ids), "/dev/rsd0")

    def container(self, ids: tuple[int, ...], found: Sequence[Resource]) -> ContainerSettings:
        """Return the settings that Backend.AI uses in production; the group's node must be /dev/rsd0 inside."""
        groups = _groups(ids, found)
        group = groups[0] if len(groups) == 1 else 0
        return ContainerSettings(
            nodes=(*(f"/dev/rbln{number}" for number in ids), f"/dev/rsd{group}:/dev/rsd0" if group else "/dev/rsd0"),
            cdi=tuple(f"rebellions.ai/npu={number}" for number in ids),
            mounts=("/usr/bin/rbln-smi:/usr/bin/rbln-smi:ro",),
            capabilities=("IPC_LOCK",),
            ulimits={"memlock": -1},
            sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},
            ipc="host",
            env={NEWEST.visible_devices: ",".join(map(str, range(len(ids))))},
        )

    def capability(self, product: str | None = None) -> Capability:  # noqa: ARG002
        """Return the longest context that is published, 131072 tokens, and the types that the NPUs compute in.

        Lengths beyond those of eager attention use flash attention.
        """
        return Capability(
            max_seq_len=131072, dtype=("float16", "bfloat16"), optimized_for=("latency", "throughput", "energy")
        )

    def mismatches(self, around: Surroundings) -> Sequence[Problem]:
        """Return a problem for two selections that differ, packages of two releases, and a driver that is too old."""
        packages = around.packages
        driver = around.versions.get("driver", "")
        return (*_two_selections(around.env), *_two_releases(packages), *_old_driver(packages, driver))

    # ------------------------------------------------------------------------------------------------------ looking

    def _look(self) -> Survey:
        present, problems = self._usable(indexed_nodes(self.root / "dev", "rbln*"))
        if not present:
            return Survey(problems=tuple(problems))
        report, why = rbln_smi.report(self.root)
        if not report:
            problems.append(Problem(f"little is known of the RBLN NPUs: {why}", _REPORT_REMEDY, blocks=False))
        by_node = report.npus if report else {}
        found = tuple(self._resource(present_id, by_node) for present_id in present)
        driver = (report.driver if report else None) or text(self.root / "sys/class/rebellions/rbln0/kernel_version")
        if driver:
            found = tuple(_with(resource, driver=driver) for resource in found)
        problems += [_faulty(resource) for resource in found if "fault" in str(resource.attributes.get("status", ""))]
        return Survey(found, tuple(problems), self._versions(driver, report))

    def _unusable(self, found: Survey) -> Sequence[Problem]:  # noqa: ARG002
        card = Card("RBLN NPU", "/dev/rbln*", "install Rebellions' driver and load it", _product)
        return tuple(unbound(card, pci_functions(self.root, _VENDOR), bool(indexed_nodes(self.root / "dev", "rbln*"))))

    def _resource(self, own: int, said: Mapping[str, Npu]) -> Resource:
        host = self._name_on_host(own)
        npu = said.get(host) or Npu(host, None)
        sysfs = self.root / "sys/class/rebellions" / host
        function = (text(sysfs / "device/device") or "").removeprefix("0x")
        product = npu.product or _PCI_PRODUCTS.get(function)
        attributes: dict[str, Any] = {
            "product": product,
            "memory_bytes": npu.memory_bytes or self.products.get(product or ""),
            "used_bytes": npu.used_bytes if npu.used_bytes is not None else number(text(sysfs / "dram_used")),
            "holders": dict(npu.holders) or None,
            "uuid": npu.uuid,
            "serial": npu.serial,
            "status": npu.status or _status(text(sysfs / "status")),
            "firmware": npu.firmware,
            "pci": npu.pci,
            "numa": npu.numa,
            "group": npu.group,
        }
        family = frozenset({chip(product).name}) if product else frozenset[str]()
        return Resource(own, self.kind, known(attributes), family)

    def _name_on_host(self, own: int) -> str:
        """Return the host's name of a node, which sysfs and the tool use: a container may be given others."""
        name = f"rbln{own}"
        try:
            device = (self.root / "dev" / name).stat().st_rdev
        except OSError:
            return name
        numbers = f"{os.major(device)}:{os.minor(device)}"
        classes = self.root / "sys/class/rebellions"
        return next((host for host in names(classes) if text(classes / host / "dev") == numbers and device), name)

    def _usable(self, present: Sequence[int]) -> tuple[Sequence[int], list[Problem]]:
        """Return the nodes that a program of this user's can use, and why the others cannot be used."""
        if present and not (self.root / "dev/rsd0").exists():
            what = f"RBLN NPUs {list(present)} are there, but no /dev/rsd0, without which their runtime counts none"
            return (), [Problem(what, "in a container, hand over the node of their RSD group as /dev/rsd0")]
        open_to_us = {own: os.access(self.root / f"dev/rbln{own}", os.R_OK | os.W_OK) for own in present}
        return [own for own, can in open_to_us.items() if can], [
            Problem(f"/dev/rbln{own} may not be opened by this user", "ask for the rights to read and write it")
            for own, can in open_to_us.items()
            if not can
        ]

    def _versions(self, driver: str | None, report: Report | None) -> Mapping[str, str]:
        versions = {"driver": driver} if driver else {}
        firmwares = {npu.firmware for npu in report.npus.values() if npu.firmware} if report else set()
        if firmwares:
            versions["firmware"] = ", ".join(sorted(firmwares))
        for package in _SDK_PACKAGES:  # found if rmlaunch itself runs in a Python that has them
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        return versions


_REPORT_REMEDY = "install rbln-smi of Rebellions' driver package, or in a container mount /usr/bin/rbln-smi"


def _groups(ids: Sequence[int], found: Sequence[Resource]) -> list[int]:
    return sorted(
        {resource.attributes["group"] for resource in found if resource.id in ids and "group" in resource.attributes}
    )


def _two_selections(env: Mapping[str, str]) -> Iterator[Problem]:
    new, old = NEWEST.visible_devices, SDKS[0].visible_devices
    if old in env and new in env and env[old] != env[new]:
        yield Problem(
            f"{old}={env[old]} and {new}={env[new]} choose different NPUs, and the runtime prefers {old}",
            f"take {old} out of engine.env and engine.inherit",
        )


def _two_releases(packages: Mapping[str, str]) -> Iterator[Problem]:
    ours = {name: packages[name] for name in _SDK_PACKAGES if name in packages}
    if len({_release(version) for version in ours.values()}) > 1:
        said = ", ".join(f"{name} {version}" for name, version in ours.items())
        yield Problem(f"these are of different releases of Rebellions' SDK: {said}", "use those of one release")


def _old_driver(packages: Mapping[str, str], driver: str) -> Iterator[Problem]:
    release = next((found for name in _SDK_PACKAGES if (found := _release(packages.get(name, "")))), None)
    wanted, have = _DRIVERS.get(release) if release else None, _release(driver)
    if release and wanted and have and have < wanted:
        what = (
            f"the driver is {driver}, and Rebellions' SDK {release[0]}.{release[1]} came with {wanted[0]}.{wanted[1]}"
        )
        yield Problem(what, "update the driver, or use packages of its own SDK", blocks=False)


def _release(version: str) -> tuple[int, int] | None:
    match = re.match(r"([0-9]{1,6})\.([0-9]{1,6})", version)
    return (int(match[1]), int(match[2])) if match else None


def _status(code: str | None) -> str | None:
    known = number(code)
    return None if known is None else _STATUS.get(known, f"code {known}")


def _faulty(resource: Resource) -> Problem:
    status = resource.attributes["status"]
    return Problem(
        f"RBLN NPU {resource.id} says of itself: {status}", "look at `rbln-smi` and the kernel's log", blocks=False
    )


def _with(resource: Resource, **attributes: Any) -> Resource:
    return Resource(resource.id, resource.type, {**resource.attributes, **attributes}, resource.tags)


def _product(function: PciFunction) -> str | None:
    return _PCI_PRODUCTS.get(function.device)
