"""The memory and processors that control groups leave to this process: version 2, version 1, and both at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from launcher.devices.host import number, text

#: a number from here on is no limit: version 1 then writes the largest multiple of a page
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of this process's control groups; None where there is no limit."""

    memory_bytes: int | None = None
    available_bytes: int | None = None  #: the unused part of that memory; caches that can be dropped are unused
    processors: float | None = None  #: processor seconds per second
    cpus: frozenset[int] | None = None  #: numbers of the processors that may be used


def limits(root: Path) -> Limits:
    """Return the tightest limits of the groups that this process is in, and of those above them."""
    mounted = root / "sys/fs/cgroup"
    places = dict(_memberships(root))
    unified = next((path for path in (mounted, mounted / "unified") if (path / "cgroup.controllers").exists()), None)
    above = list(_upwards(unified, places.get("", "/"))) if unified else []
    memory = list(_upwards(mounted / "memory", places.get("memory", "/")))
    sizes = [(limit, group, _version_2) for group in above if (limit := number(text(group / "memory.max"))) is not None]
    sizes += [
        (limit, group, _version_1)
        for group in memory
        if (limit := number(text(group / "memory.limit_in_bytes"))) is not None and limit < _NO_LIMIT
    ]
    cpu = [folder for name in ("cpu", "cpu,cpuacct") for folder in _upwards(mounted / name, places.get("cpu", "/"))]
    quotas = [quota for group in above if (quota := _max(text(group / "cpu.max"))) is not None]
    quotas += [quota for group in cpu if (quota := _quota(group)) is not None]
    cpusets = [*above[:1], *list(_upwards(mounted / "cpuset", places.get("cpuset", "/")))[:1]]
    sets = [found for group in cpusets if (found := _cpuset(group))]
    return Limits(
        memory_bytes=min((limit for limit, _, _ in sizes), default=None),
        available_bytes=min((_left(limit, group, used) for limit, group, used in sizes), default=None),
        processors=min(quotas, default=None),
        cpus=frozenset.intersection(*sets) if sets else None,
    )


def numbers(ranges: str | None) -> frozenset[int]:
    """Return the numbers that a list such as `0-3,8` stands for; empty for anything else."""
    found: set[int] = set()
    for part in (ranges or "").split(","):
        first, dash, last = part.partition("-")
        start, end = number(first), number(last) if dash else number(first)
        if start is None or end is None or end > 1 << 16:
            return frozenset()
        found.update(range(start, end + 1))
    return frozenset(found)


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each controller and the path of its group; the controller of version 2 is empty."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            yield controller, path


def _upwards(mounted: Path, path: str) -> Iterator[Path]:
    """Yield the group's folder and those above it that can be seen: a container may see its own as the topmost."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..") and "\0" not in part]
    for count in range(len(parts), -1, -1):
        folder = mounted.joinpath(*parts[:count])
        try:
            if folder.is_dir():
                yield folder
        except OSError:  # a name that is too long
            continue


def _max(said: str | None) -> float | None:
    """Return the quota in `cpu.max` ("50000 100000"), in processors; None for "max 100000"."""
    quota, period = [number(word) for word in [*(said or "").split(), "", ""][:2]]
    return quota / period if quota and period else None


def _quota(group: Path) -> float | None:
    quota, period = number(text(group / "cpu.cfs_quota_us")), number(text(group / "cpu.cfs_period_us"))
    return quota / period if quota and period else None


def _cpuset(group: Path) -> frozenset[int]:
    said: Sequence[str] = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    return next((found for name in said if (found := numbers(text(group / name)))), frozenset())


def _left(limit: int, group: Path, used: Callable[[Path], int]) -> int:
    return max(0, limit - used(group))


def _version_2(group: Path) -> int:
    return max(0, (number(text(group / "memory.current")) or 0) - _stat(group, "inactive_file"))


def _version_1(group: Path) -> int:
    return max(0, (number(text(group / "memory.usage_in_bytes")) or 0) - _stat(group, "total_inactive_file"))


def _stat(group: Path, key: str) -> int:
    words = (text(group / "memory.stat") or "").split()
    return next((number(value) or 0 for name, value in pairwise(words) if name == key), 0)
