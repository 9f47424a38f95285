"""`python -m launcher` is `rmlaunch`."""

from __future__ import annotations

from launcher.cli.main import main

main()
