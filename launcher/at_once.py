"""Do the same for several items at once: a slow one costs the others nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def at_once(do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call `do` with each of `items` in a thread of its own; return the results in the order of `items`.

    The first exception is raised again when all have ended. The threads are daemons: a Ctrl-C does not wait for them.
    """
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def work(number: int, item: T) -> None:
        try:
            results[number] = do(item)
        except BaseException as exc:  # noqa: BLE001  (raised below)
            errors.append(exc)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]
