"""How much of what Docker has kept is in our own log already, whatever a container says."""

from __future__ import annotations

import itertools
import time

import pytest

from launcher.runtimes.docker_log import _OVERLAP_BYTES, _overlap


def looked_up(written: bytes, said: bytes) -> int:
    """The same, by trying each end of a line."""
    ends = {0, len(said), *(at + 1 for at, byte in enumerate(said) if byte == ord("\n"))}
    return max(end for end in ends if written.endswith(said[:end]))


def test_it_is_the_most_that_both_have() -> None:
    texts = [bytes(text) for length in range(7) for text in itertools.product(b"a\n", repeat=length)]

    for written, said in itertools.product(texts, repeat=2):
        assert _overlap(written, said) == looked_up(written, said), (written, said)


@pytest.mark.parametrize(
    ("written", "said", "overlap"),
    [
        (b"one\ntwo\n", b"two\nthree\n", 4),
        (b"one\ntwo\n", b"two\n", 4),
        (b"one\ntwo\n", b"three\n", 0),
        (b"one\nunfinished", b"unfinished", 10),
        (b"one\nunfin", b"unfinished\n", 0),
        (b"", b"one\n", 0),
        (b"one\n", b"", 0),
    ],
)
def test_only_whole_lines_are_known_again(written: bytes, said: bytes, overlap: int) -> None:
    assert _overlap(written, said) == overlap


@pytest.mark.parametrize("line", [b"\n", b"x\n", b"x" * 99 + b"\n"])
def test_a_long_log_takes_no_longer_for_what_is_in_it(line: bytes) -> None:
    written = (line * _OVERLAP_BYTES)[: _OVERLAP_BYTES - 1] + b"y"
    said = line * ((8 << 20) // len(line)) + b"z\n"

    began = time.monotonic()
    assert _overlap(written, said) == 0
    assert time.monotonic() - began < 10
