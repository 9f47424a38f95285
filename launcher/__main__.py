"""Run `python -m launcher` as `rmlaunch`."""

from __future__ import annotations

import sys

from launcher.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "rmlaunch"  # Hydra names the program by it
    main()
