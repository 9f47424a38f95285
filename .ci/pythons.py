"""Runs the tests without real engines on other Pythons than the default one.

    python .ci/pythons.py [--oldest] VENV

VENV is the environment that `make setup` has made; each other Python gets one of its own in VENV/pythons. With
--oldest, the oldest that is found beside VENV's own is the only one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = tuple(f"3.{minor}" for minor in range(10, 15))
OWN = "{}.{}".format(*sys.version_info)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--oldest", action="store_true")
    parser.add_argument("venv", type=Path)
    asked = parser.parse_args()
    found = {version: python for version in VERSIONS if (python := find(version))}
    for version in VERSIONS:
        say(f"python{version}: {found.get(version, 'not found')}{' (the default)' if version == OWN else ''}")
    others = [version for version in found if version != OWN]
    if not others:
        say(f"only the default Python, {OWN}, was found on PATH and in pyenv: the tests ran on no other")
    chosen = others[:1] if asked.oldest else [version for version in VERSIONS if version in (*others, OWN)]
    failed = [version for version in chosen if not passes(version, asked.venv, found.get(version, ""))]
    for version in chosen:
        say(f"python{version}: {'failed' if version in failed else 'passed'}")
    return 1 if failed else 0


def find(version: str) -> str:
    """Return the first program of that version that runs: pyenv's shims are there for versions that are not."""
    return next((python for python in candidates(version) if runs(python, version)), "")


def candidates(version: str) -> Iterator[str]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield str(Path(folder, f"python{version}"))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    releases = [folder for folder in (pyenv / "versions").glob(f"{version}.*") if re.fullmatch(r"[\d.]+", folder.name)]
    for folder in sorted(releases, key=lambda folder: int(folder.name.rpartition(".")[2]), reverse=True):
        yield str(folder / "bin" / f"python{version}")


def runs(python: str, version: str) -> bool:
    if not os.access(python, os.X_OK):
        return False
    words = [python, "-c", "import ctypes, sqlite3, ssl, sys; print('{}.{}'.format(*sys.version_info))"]
    said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return said.stdout.strip() == version


def passes(version: str, venv: Path, python: str) -> bool:
    home = venv if version == OWN else venv / "pythons" / version
    if not made(home, venv / "bin" / "uv", python):
        return False
    say(f"python{version}: the tests without real engines")
    # What tests start by name is in the environment too.
    env = {**os.environ, "PATH": os.pathsep.join((str(home.absolute() / "bin"), os.environ["PATH"]))}
    tests = [str(home / "bin" / "python"), "-m", "pytest", "-q", "-m", "not real"]
    return subprocess.run(tests, cwd=ROOT, env=env, check=False).returncode == 0


def made(home: Path, uv: Path, python: str) -> bool:
    """Make the environment unless it is there to the end; return whether it is."""
    done = home / ".done"
    if done.exists():
        return True
    install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", home / "bin" / "python", "-e", ".[dev]"]
    for words in ([uv, "venv", "-q", "--clear", "--python", python, home], install):
        if subprocess.run([str(word) for word in words], cwd=ROOT, check=False).returncode != 0:
            return False
    done.touch()
    return True


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
