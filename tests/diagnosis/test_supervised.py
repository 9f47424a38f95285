"""The supervisor reads enough of the log for the cause, and names it of an engine that hangs, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import ExitedBeforeReady, ReadyTimeout
from tests.supervision import fake_plan, supervised


def test_a_cause_far_above_the_end_of_the_log_is_told(tmp_path: Path) -> None:
    usage = "\n".join(["Usage: server [options]"] * 2000)
    plan = fake_plan(tmp_path, "--exit-at-start", "2", "--say", f"server: unrecognized option '--bogus'\n{usage}")

    with supervised(plan, tmp_path) as owner, pytest.raises(ExitedBeforeReady) as failed:
        owner.wait_ready()

    assert "exited 2: it does not know one of its flags (server: unrecognized option '--bogus')" in str(failed.value)


def test_the_cause_of_a_hang_is_told(tmp_path: Path) -> None:
    cause = "stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file"
    plan = fake_plan(tmp_path, "--bind-nothing", "--say", cause, startup_timeout_s=0.5)

    with supervised(plan, tmp_path) as owner, pytest.raises(ReadyTimeout) as failed:
        owner.wait_ready()

    first = str(failed.value).splitlines()[0]
    assert "not ready after 0.5 s" in first
    assert f"; Python's shared library, which Triton embeds, is missing ({cause}); install it" in first
