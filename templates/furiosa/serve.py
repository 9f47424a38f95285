"""`furiosa-llm serve` with the key in the variable FURIOSA_LLM_API_KEY.

Furiosa-LLM 2026.4 takes a key on its command line alone, which everybody on the machine may read.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `furiosa-llm` with the key put among its arguments inside this process."""
    from furiosa_llm.cli.main import main as furiosa_llm

    sys.argv = ["furiosa-llm", "serve", *sys.argv[1:], "--api-key", os.environ.pop("FURIOSA_LLM_API_KEY")]
    furiosa_llm()


if __name__ == "__main__":
    main()
