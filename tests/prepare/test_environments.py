"""Engine environments: what they are named after, whose they are, and that they are made whole by uv."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engines.base import ConfigError, PrepareError
from launcher.cli.inventory import packages as packages_of
from launcher.config.schema import EnvironmentConf
from launcher.planning.environments import describe
from launcher.prepare.environments import ensure, lock_of, uv
from launcher.progress import Progress

QUIET = Progress(quiet=True)
CACHE = Path("/cache")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
CONF = EnvironmentConf(requirements=["a==1"], overrides=["b==1"], indexes=["https://i/simple"], python="3.12")


def test_a_managed_environment_is_described_by_its_config() -> None:
    environment = describe("x-cpu", "managed", CONF, CACHE)

    assert (environment.name, environment.python, environment.managed) == ("x-cpu", "3.12", True)
    assert environment.requirements == ("a==1",)
    assert environment.overrides == ("b==1",)
    assert environment.indexes == ("https://i/simple",)
    assert environment.path.startswith("/cache/environments/x-cpu-")
    assert environment == describe("x-cpu", "managed", CONF, CACHE)


def test_without_config_it_is_empty_and_of_the_running_python() -> None:
    environment = describe("x", "managed", None, CACHE)

    assert (environment.requirements, environment.python) == ((), RUNNING)


@pytest.mark.parametrize(
    "other",
    [
        EnvironmentConf(["a==2"], CONF.overrides, CONF.indexes, CONF.python),
        EnvironmentConf(["a==1", "c==1"], CONF.overrides, CONF.indexes, CONF.python),
        EnvironmentConf(CONF.requirements, ["b==2"], CONF.indexes, CONF.python),
        EnvironmentConf(CONF.requirements, CONF.overrides, ["https://j/simple"], CONF.python),
        EnvironmentConf(CONF.requirements, CONF.overrides, CONF.indexes, "3.13"),
        EnvironmentConf([*CONF.requirements, *CONF.overrides], [], CONF.indexes, CONF.python),
    ],
)
def test_another_ingredient_is_another_environment(other: EnvironmentConf) -> None:
    assert describe("x", "managed", CONF, CACHE).path != describe("x", "managed", other, CACHE).path


def test_another_processor_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = describe("x", "managed", CONF, CACHE).path
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert describe("x", "managed", CONF, CACHE).path != ours


def test_the_current_environment_is_the_running_one_and_not_ours_to_make() -> None:
    environment = describe("x", "current", CONF, CACHE)

    assert (environment.path, environment.python, environment.managed) == (sys.prefix, RUNNING, False)
    assert environment.requirements == ()
    ensure(environment, QUIET)


@pytest.mark.parametrize("part", ["", "bin/python"])
def test_an_environment_of_the_users_own_is_its_folder_or_its_python(tmp_path: Path, part: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "lib/python3.12").mkdir(parents=True)

    environment = describe("x", str(tmp_path / part), CONF, CACHE)

    assert (environment.path, environment.python, environment.managed) == (str(tmp_path), "3.12", False)
    assert environment.site_packages == f"{tmp_path}/lib/python3.12/site-packages"


def test_a_path_may_be_relative_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv/lib/python3.12").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert describe("x", "venv", CONF, CACHE).path == str(tmp_path / "venv")
    assert describe("x", "~/venv", CONF, CACHE).path == str(tmp_path / "venv")


@pytest.mark.parametrize("choice", ["/nowhere", "mannaged"])
def test_a_path_without_a_python_is_refused_with_the_choices(choice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe("x", choice, CONF, CACHE)

    assert str(caught.value) == (
        f"engine.environment={str(Path(choice).absolute())!r} is neither a Python environment nor its python; "
        "give managed, current, or the folder that has bin/python and lib/python3.x"
    )


def test_the_newest_python_of_a_folder_is_found_by_number(tmp_path: Path) -> None:
    for version in ("3.9", "3.12"):
        (tmp_path / f"lib/python{version}").mkdir(parents=True)

    assert describe("x", str(tmp_path), CONF, CACHE).python == "3.12"


# ------------------------------------------------------------------------------------------- making, with a real uv


class Index(SimpleHTTPRequestHandler):
    """Folders of files are all that a package index is; `asked` has the paths that were wanted."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def make_wheel(folder: Path, name: str, version: int = 1, code: str = "", needs: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", told + (f"Requires-Dist: {needs}\n" if needs else ""))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n")
    return file


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Wheels of `linked`, where PIP_FIND_LINKS leads; uv sees an empty index, no cache and no settings of ours."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_")) or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    make_wheel(tmp_path / "links", "linked")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "empty").as_uri())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return tmp_path / "links"


@pytest.fixture
def index(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The URL of an index that has the package `indexed`, and the paths that it was asked for."""
    assert packages.is_dir()
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    make_wheel(tmp_path / "index/simple/indexed", "indexed")
    Index.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(tmp_path / "index")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/simple", Index.asked
    server.shutdown()
    server.server_close()
    thread.join(10)


def installed(environment: str) -> set[str]:
    code = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    done = subprocess.run([f"{environment}/bin/python", "-Ic", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.usefixtures("packages")
def test_an_environment_is_made_once_and_has_exactly_its_packages(tmp_path: Path) -> None:
    environment = describe("x", "managed", EnvironmentConf(["linked==1"]), tmp_path)

    ensure(environment, QUIET)
    made = Path(environment.path).stat().st_ino
    ensure(environment, QUIET)

    assert installed(environment.path) == {"linked"}
    assert Path(environment.site_packages, "linked.py").exists()
    assert Path(environment.path).stat().st_ino == made


def test_what_is_made_again_is_the_same_or_is_refused(packages: Path, tmp_path: Path) -> None:
    make_wheel(packages, "linked", needs="needed_by_linked")
    first = make_wheel(packages, "needed_by_linked")
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    environment = describe("x", "managed", EnvironmentConf(["linked==1"]), tmp_path)
    ensure(environment, QUIET)
    lock = lock_of(Path(environment.path))
    assert f"needed-by-linked==1 \\\n    --hash=sha256:{digest}\n" in lock.read_text()

    make_wheel(packages, "needed_by_linked", version=2)
    shutil.rmtree(environment.path)
    ensure(environment, QUIET)
    assert packages_of(environment) == {
        "linked": "1",
        "needed-by-linked": "1",
    }  # as it was, though there is a newer one

    make_wheel(packages, "needed_by_linked", code="import os  # changed at its index")
    shutil.rmtree(environment.path)
    shutil.rmtree(tmp_path / "uv")  # its cache knows what was installed before
    with pytest.raises(
        PrepareError, match=r"(?s)as .*lock\.txt has it from the first time;.* remove .*[Hh]ash mismatch"
    ):
        ensure(environment, QUIET)
    assert not Path(environment.path).exists()

    lock.unlink()
    ensure(environment, QUIET)
    assert packages_of(environment) == {"linked": "1", "needed-by-linked": "2"}


def test_a_password_in_a_requirement_is_in_no_lock(index: tuple[str, list[str]], tmp_path: Path) -> None:
    url = index[0].replace("//", "//me:hunter2@")
    conf = EnvironmentConf([f"indexed @ {url}/indexed/indexed-1-py3-none-any.whl"])
    environment = describe("x", "managed", conf, tmp_path)

    ensure(environment, QUIET)

    assert installed(environment.path) == {"indexed"}
    found = [file for file in (tmp_path / "environments").rglob("*") if file.is_file() and not file.is_symlink()]
    assert [file for file in found if b"hunter2" in file.read_bytes()] == []


@pytest.mark.usefixtures("packages")
def test_an_environment_that_cannot_be_made_names_its_packages_and_leaves_nothing(tmp_path: Path) -> None:
    environment = describe("x", "managed", EnvironmentConf(["linked==1", "missing==2"]), tmp_path)

    with pytest.raises(PrepareError) as caught:
        ensure(environment, QUIET)

    message = str(caught.value)
    assert message.startswith(
        "could not make environment x (linked==1, missing==2 from the default package index): uv exited 1:\n"
    )
    assert "you require missing==2" in message
    left = [path.name for path in (tmp_path / "environments").iterdir() if not path.name.endswith(".lock")]
    assert left == []


@pytest.mark.usefixtures("packages")
def test_an_index_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    conf = EnvironmentConf(["missing==2"], indexes=["http://me:hunter2@127.0.0.1:9/simple"])

    with pytest.raises(PrepareError) as caught:
        ensure(describe("x", "managed", conf, tmp_path), QUIET)

    assert str(caught.value).startswith(
        "could not make environment x (missing==2 from the default package index and http://***@127.0.0.1:9/simple): uv"
    )
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("packages")
def test_an_override_keeps_a_requirement_out(tmp_path: Path) -> None:
    conf = EnvironmentConf(["linked==1", "missing==2"], overrides=["missing; sys_platform == 'never'"])
    environment = describe("x", "managed", conf, tmp_path)

    ensure(environment, QUIET)

    assert installed(environment.path) == {"linked"}


@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_the_index_that_pip_is_set_up_for_is_used(
    index: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    url, asked = index
    monkeypatch.setenv(variable, url)

    uv(["pip", "install", "--target", str(tmp_path / "here"), "indexed==1"], "could not", QUIET)

    assert (tmp_path / "here/indexed.py").exists()
    assert asked[0].rstrip("/") == "/simple/indexed"


def test_uvs_own_setting_wins_over_pips(
    index: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index[0])

    uv(["pip", "install", "--target", str(tmp_path / "here"), "indexed==1"], "could not", QUIET)

    assert (tmp_path / "here/indexed.py").exists()


def test_an_index_of_the_environments_own_is_used(
    index: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index[0]}/none")
    environment = describe("x", "managed", EnvironmentConf(["indexed==1"], indexes=[index[0]]), tmp_path)

    ensure(environment, QUIET)

    assert installed(environment.path) == {"indexed"}


@pytest.mark.usefixtures("packages")
def test_a_uv_that_reads_no_requirements_is_an_error_like_any_other() -> None:
    with pytest.raises(PrepareError, match=r"^could not: uv exited 2:"):
        uv(["pip", "install", "--bogus", "-r", "-"], "could not", QUIET, stdin="x==1\n" * 100_000)
