"""What reaches a terminal from engines, clients and models, and what reaches a pipe."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli.sweep import _print_table
from launcher.progress import Progress
from launcher.terminal import guarded, shown
from tests.supervision import detached, fake_plan, wait_for

#: renames the window, clears it, writes to its clipboard, in C1 and C0; turns a name around
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\x1b]52;c;cm0gLXJm\x1b\\ \u202egpj.exe\u2066\x7f\x08 end"
SHOWN = "^[]0;owned^G^[[2J<U+009B>2J^[]52;c;cm0gLXJm^[\\ <U+202E>gpj.exe<U+2066>^?^H end"


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(state: Path, *words: str, encoding: str = "utf-8") -> str:
    """All that `rmlaunch` prints where stdout and stderr are one; it is ended when it does not end."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "RMLAUNCH_STATE": str(state), "TERM": "xterm", "PYTHONIOENCODING": encoding}
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=env,
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: everybody who had the other end open has ended
            while piece := os.read(ours, 65536):
                said += piece
        os.close(ours)
        process.wait(30)
    return said.decode(encoding).replace("\r\n", "\n")  # a terminal's own


def obeyed(text: str) -> list[str]:
    return [c for c in text if c not in "\n\t" and not c.isprintable()]


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert shown(HOSTILE) == SHOWN
    assert obeyed(shown("".join(map(chr, range(0x300))))) == ["\xa0", "\xad"]  # space and hyphen
    assert shown("naïve\tπ 漢字 🙂\n") == "naïve\tπ 漢字 🙂\n"
    assert shown(SHOWN) == SHOWN


def test_a_carriage_return_ends_a_line_and_hides_nothing() -> None:
    assert shown("all is lost\rall is well\r\nbye\n") == "all is lost\nall is well\nbye\n"


def test_only_a_terminal_is_shown_anything() -> None:
    pipe, terminal = io.StringIO(), Tty()

    guarded(pipe).write(HOSTILE)
    guarded(guarded(terminal)).writelines([HOSTILE])

    assert (pipe.getvalue(), terminal.getvalue()) == (HOSTILE, SHOWN)


def test_a_live_line_is_ours_and_the_words_in_it_are_not() -> None:
    stream = Tty()
    progress = Progress(stream)

    progress.note(HOSTILE)
    progress.detail("\x1b[2J")

    assert stream.getvalue().startswith(f"{SHOWN}\n\r\x1b[K")
    assert stream.getvalue().count("\x1b") == 1
    assert "^[[2J" in stream.getvalue()


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """The state folder of a deployment whose engine has said `HOSTILE`."""
    with detached(fake_plan(tmp_path, "--say", HOSTILE), tmp_path):
        yield tmp_path


def test_logs_show_a_terminal_and_send_a_pipe(hostile: Path) -> None:
    command = [sys.executable, "-m", "launcher", "logs", "fake"]
    piped = subprocess.run(command, env={**os.environ, "RMLAUNCH_STATE": str(hostile)}, capture_output=True, check=True)

    assert piped.stdout.decode() == f"{HOSTILE}\n"
    assert on_a_terminal(hostile, "logs", "fake") == f"{SHOWN}\n"
    assert on_a_terminal(hostile, "logs", "fake", "--raw") == f"{HOSTILE}\n"


def test_a_followed_log_is_shown_too_though_a_character_comes_in_two_pieces(hostile: Path) -> None:
    log = hostile / "deployments/fake/logs/000001.log"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "fake", "-f"], stdout=theirs, stderr=theirs,
        env={**os.environ, "RMLAUNCH_STATE": str(hostile)},
    ) as process:  # fmt: skip
        os.set_blocking(ours, False)
        said = bytearray()

        def heard(words: bytes) -> bool:
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(ours, 65536))
            return words in said

        try:
            wait_for(lambda: heard(b" end"))
            with log.open("ab", buffering=0) as stream:
                stream.write(b"<\xc2")
                wait_for(lambda: heard(b"<\xc2") or b"\n<" in said)
                stream.write(b"\x9b2J>\x9b\n")  # C1 in UTF-8, and as a byte of its own
                wait_for(lambda: heard(b"<<U+009B>2J>\xef\xbf\xbd"))
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)
    assert b"\x1b" not in said


def test_what_a_server_says_in_a_reason_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "deployments/fake"
    folder.mkdir(parents=True)
    news = {"state": "FAILED", "reason": HOSTILE, "leftovers": [HOSTILE], "tail": [HOSTILE], "log": ""}
    (folder / "state.json").write_text(json.dumps(news))
    (folder / "plan.json").write_text(json.dumps({"ports": [], "plan": {"engine": HOSTILE}}))

    words = (("status", "fake"), ("ps", "--all"), ("infer", "fake", "x"), ("stop", HOSTILE), (f"logs{HOSTILE}",))
    said = {verb: on_a_terminal(tmp_path, verb, *more) for verb, *more in words}

    assert {verb: obeyed(text) for verb, text in said.items()} == {verb: [] for verb in said}
    assert {verb for verb, text in said.items() if "^[[2J" in text} == {"status", "ps"}
    assert r"\x1b[2J" in said["stop"]  # as Python quotes it


#: a character of another script, of Latin 1, and half of one, which no encoding has
STRANGE = "漢 é \ud800"


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """The state folder of a deployment with `STRANGE` in its record and its log."""
    folder = tmp_path / "deployments/odd"
    (folder / "logs").mkdir(parents=True)
    log = folder / "logs/000001.log"
    log.write_text("漢 é\n", encoding="utf-8")
    news = {"state": "FAILED", "reason": STRANGE, "leftovers": [STRANGE], "tail": [STRANGE], "log": str(log)}
    (folder / "state.json").write_text(json.dumps(news))
    (folder / "plan.json").write_text(json.dumps({"ports": [], "plan": {"engine": STRANGE, "model": {"id": STRANGE}}}))
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "log", "record"),
    [
        ("utf-8", "漢 é", r"漢 é \ud800"),
        ("latin-1", r"\u6f22 é", r"\u6f22 é \ud800"),
        ("ascii", r"\u6f22 \xe9", r"\u6f22 \xe9 \ud800"),
    ],
)
def test_what_a_stream_cannot_have_is_written_out(strange: Path, encoding: str, log: str, record: str) -> None:
    assert on_a_terminal(strange, "logs", "odd", encoding=encoding) == f"{log}\n"
    for words in (["ps", "--all"], ["status", "odd"]):
        command = [sys.executable, "-m", "launcher", *words]
        env = {**os.environ, "RMLAUNCH_STATE": str(strange), "PYTHONIOENCODING": encoding}
        piped = subprocess.run(command, env=env, capture_output=True, check=True)
        assert record in piped.stdout.decode(encoding)
        assert record in on_a_terminal(strange, *words, encoding=encoding)


def test_an_answer_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(("engine", "device", "model", "ready_s", "first_token_s", "tokens_per_s", "peak_memory_mb"))
    answer = "[link=//evil]x[/link] [/no] :bomb:"

    _print_table([{**row, "ok": True, "answer": answer}])

    assert answer in " ".join(capsys.readouterr().out.split())
