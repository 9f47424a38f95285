from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.harness import Fake, fake


@pytest.fixture(scope="module")
def a() -> Iterator[Fake]:
    """A server that nobody kills."""
    with fake("a") as made:
        yield made


@pytest.fixture(scope="module")
def b() -> Iterator[Fake]:
    with fake("b") as made:
        yield made
