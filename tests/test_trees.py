"""Removing what a program has left: links are not followed, and no folder is too deep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import trees


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with a file, which must stay."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("x")
    return folder


def test_links_are_removed_and_not_followed(tmp_path: Path, victim: Path) -> None:
    root = tmp_path / "run"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").touch()
    for place in (root / "tmp", root / "a/link", root / "a/b/link"):
        place.symlink_to(victim)
    os.mkfifo(root / "pipe")

    trees.remove(root)

    assert not root.exists()
    assert (victim / "precious").exists()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path, victim: Path) -> None:
    root = tmp_path / "run"
    root.symlink_to(victim)

    trees.remove(root)

    assert (victim / "precious").exists()


def test_a_folder_in_a_folder_thousands_deep_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    script = "import os\nfor _ in range(5000): os.mkdir('deep'); os.chdir('deep'); open('file', 'w').close()"
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)

    trees.remove(root)

    assert not root.exists()


def test_folders_that_their_owner_has_closed_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "a/b").mkdir(parents=True)
    for folder in (root / "a/b", root / "a", root):
        folder.chmod(0)
    if os.geteuid() == 0:  # whom no mode stops
        script = (
            f"import os, pathlib, sys; sys.path[:0] = {sys.path!r}\nfrom launcher import trees\nos.setuid(65534)\n"
            f"trees.remove(pathlib.Path({str(root)!r}))"
        )
        for folder in (tmp_path, root, root / "a", root / "a/b"):
            os.chown(folder, 65534, 65534)
        script = f"import os; os.chdir({str(tmp_path)!r}); " + script.replace(str(root), "run")
        subprocess.run([sys.executable, "-c", script], check=True)
    else:
        trees.remove(root)

    assert not root.exists()
