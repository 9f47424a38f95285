"""The packages that an engine × device needs, as a place on a disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Environment:
    """An isolated set of packages; `path` is the folder of the Python environment that holds it."""

    name: str
    path: str
    python: str  #: "3.11"
    managed: bool = True  #: False where the user owns it: it is used as it is
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    library_dir: str = ""  #: where the shared library of its Python lies, for programs that embed it

    @property
    def bin(self) -> str:
        return f"{self.path}/bin"

    @property
    def version(self) -> str:
        """What an artifact made here is keyed by: the pinned packages, or the place where the user has it."""
        return ", ".join(self.requirements) or self.path

    @property
    def site_packages(self) -> str:
        return f"{self.path}/lib/python{self.python}/site-packages"
