"""The plans of deployments that may run, for the verbs that list and prune what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from engines.base import ConfigError, DeploymentError
from launcher import bounded_json
from launcher.deployments.ledger import Ledger
from launcher.deployments.records import Deployments
from launcher.output import note, print_json, print_table, size
from launcher.paths import state_root
from launcher.prepare.stores import Pruned

DAY_S = 86400.0


def plans() -> Mapping[str, str]:
    """Return the plan.json of each deployment that may run, as it stands, by name; those that can be read."""
    Deployments(state_root()).all()  # adopts those that serve without a supervisor
    return _plans(Ledger(state_root()))[0]


@contextmanager
def nobody_begins(what: str, *, unused: bool, older_than: float | None) -> Iterator[Mapping[str, str]]:
    """Yield as `plans`, while no launch begins. `what` is what is to be removed, for the message.

    Raises `DeploymentError` where it cannot be told what is in use, and `ConfigError` for a negative age.
    """
    if older_than is not None and older_than < 0:
        raise ConfigError(f"--older-than {older_than:g} must not be negative")
    Deployments(state_root()).all()
    ledger = Ledger(state_root())
    with ledger.exclusive():
        found, unreadable = _plans(ledger)
        if unreadable and (unused or older_than is not None):
            raise DeploymentError(
                f"the plan.json of {', '.join(unreadable)} cannot be read, so it cannot be told which {what} are in "
                f"use; stop {unreadable[0]} first"
            )
        yield found


def print_removed(removed: Sequence[Pruned], *, as_json: bool) -> None:
    """Print a line for each thing that was removed, and how much that was; with `as_json` a list of objects."""
    if as_json:
        print_json([{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in removed])
        return
    print_table([(item.path.name, size(item.bytes), item.why) for item in removed])
    note(f"removed {len(removed)}, {size(sum(item.bytes for item in removed))}")


def _plans(ledger: Ledger) -> tuple[dict[str, str], list[str]]:
    """Read the plan.json of each deployment that may run; and the names of those where that cannot be read."""
    found: dict[str, str] = {}
    unreadable: list[str] = []
    for name in ledger.running():
        try:
            found[name] = bounded_json.read_bytes(ledger.deployments / name / "plan.json").decode(errors="replace")
        except (OSError, ValueError):  # noqa: PERF203  (one's trouble is not the others')
            unreadable.append(name)
    return found, unreadable
