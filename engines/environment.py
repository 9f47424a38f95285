"""The packages that an engine × device needs, as a place on a disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Environment:
    """An isolated set of packages; `path` is the folder of the Python environment that holds it."""

    name: str
    path: str
    python: str  #: "3.11"
    managed: bool = True  #: False if the user owns the environment: it is used as it is
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    library_dir: str = ""  #: folder of the shared library of its Python, for programs that embed Python

    @property
    def bin(self) -> str:
        """The folder of its programs."""
        return f"{self.path}/bin"

    @property
    def version(self) -> str:
        """The key for artifacts made here: the pinned packages, or the path of an environment of the user's."""
        return ", ".join(self.requirements) or self.path

    @property
    def site_packages(self) -> str:
        """The folder of its Python packages."""
        return f"{self.path}/lib/python{self.python}/site-packages"
