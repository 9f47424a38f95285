"""The engine's logs: numbered by start, cut by size, the oldest removed."""

from __future__ import annotations

from pathlib import Path

from launcher.supervise import logs


def test_each_start_has_a_file_and_the_oldest_go_with_what_was_cut_off_them(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for number in range(1, 15):
        log = logs.next_file(folder)
        assert log.name == f"{number:06d}.log"
        log.write_text("x" * 9)
        logs.rotate(log, 5)

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{number:06d}.log" for number in range(5, 15)] + [f"{number:06d}.log.1" for number in range(5, 15)]
    )
    assert logs.newest(folder).name == "000014.log"


def test_a_log_that_is_too_long_is_cut_while_its_writer_goes_on(tmp_path: Path) -> None:
    log, older = tmp_path / "000001.log", tmp_path / "000001.log.1"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"first\n")
        logs.rotate(log, 6)
        assert not older.exists()
        writer.write(b"second\n")
        logs.rotate(log, 6)
        writer.write(b"third\n")

    assert older.read_bytes() == b"first\nsecond\n"
    assert log.read_bytes() == b"third\n"


def test_a_log_that_cannot_be_copied_is_not_cut(tmp_path: Path) -> None:
    log = tmp_path / "000001.log"
    log.write_text("precious")
    (tmp_path / "000001.log.1").mkdir()

    logs.rotate(log, 3)

    assert log.read_text() == "precious"


def test_the_tail_is_what_a_terminal_can_stand(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 9000 + b"\n\x1b[31mred\x00\xff\n" + b"b" * 500)

    *_, red, last = logs.tail(log)

    assert red == "[31mred\ufffd"
    assert last == "b" * 400
    assert logs.tail(tmp_path / "nowhere") == []
    assert (logs.size(log), logs.size(tmp_path / "nowhere")) == (9512, 0)
