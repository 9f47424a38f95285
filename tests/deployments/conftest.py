"""What tests of deployments share besides tests/supervision.py."""

from __future__ import annotations

import pytest

from launcher.deployments.connection import Connection


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that shows no sign of itself is given up sooner than users would: it hangs for good."""
    monkeypatch.setattr("launcher.deployments.connection._ANSWER_S", 1.0)
    monkeypatch.setattr("launcher.deployments.connection._PING_S", 0.2)
    monkeypatch.setattr(Connection.__init__, "__defaults__", (1.0,))
