"""Read the header of a GGUF file, versions 2 and 3, little-endian: its metadata and the sizes of its tensors.

Source: docs/gguf.md of ggml. The weights themselves are not read.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_COUNTS = struct.Struct("<4sIQQ")
_SIZE = struct.Struct("<Q")
_KIND = struct.Struct("<I")
_ARRAY = struct.Struct("<IQ")
#: value type → its layout
_NUMBERS = {
    number: struct.Struct(f"<{letter}") for number, letter in (*enumerate("BbHhIif?"), (10, "Q"), (11, "q"), (12, "d"))
}
_STRING, _LIST = 8, 9
_LONG = 4096  #: entries; longer lists (vocabularies) are only counted
#: general.file_type → the name that the file's author gave it (llama.h: enum llama_ftype)
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one model, over all of its files."""

    metadata: Mapping[str, Any]  #: long lists are left out
    lengths: Mapping[str, int]  #: entries of every list, by key
    tensors: Mapping[str, int]  #: name → elements
    stored_bytes: int  #: bytes of all tensors, the space between them included

    @property
    def architecture(self) -> str:
        """The model's architecture, such as llama; empty if the file does not say it."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def quantization(self) -> str | None:
        """The quantization's name, such as Q4_K_M; None if the file does not say it or it is unknown."""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1))

    @property
    def elements(self) -> int:
        """The number of weights, over all tensors."""
        return sum(self.tensors.values())

    @property
    def tokens(self) -> int | None:
        """The size of the vocabulary; None if the file has none."""
        return self.lengths.get("tokenizer.ggml.tokens")

    def told(self, key: str) -> Any:
        """Return the value of `key` below the file's own architecture; None if the file has none."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read(file: Path) -> Header | None:
    """Return the header, over all parts of a model in several files; None for another version or byte order.

    Raises `OSError` where the file cannot be read, and `ValueError` where it ends early or is no GGUF file.
    """
    first = _read_one(file)
    match = _PART.fullmatch(file.name)
    if first is None or match is None:
        return first
    others = [other for other in file.parent.glob(f"{match['stem']}-*-of-{match['count']}.gguf") if other != file]
    if len(others) != int(match["count"]) - 1:
        raise ValueError(f"{file} is one of {match['count']}, and not all of them are there")
    parts = [part for part in (_read_one(other) for other in others) if part]
    return Header(
        first.metadata,
        first.lengths,
        {name: elements for part in (first, *parts) for name, elements in part.tensors.items()},
        sum(part.stored_bytes for part in (first, *parts)),
    )


def _read_one(file: Path) -> Header | None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            magic, version, tensors, entries = _COUNTS.unpack_from(data)
            if magic != b"GGUF":
                raise ValueError(f"{file} is no GGUF file")
            if version not in (2, 3):
                return None
            cursor = _Cursor(data, _COUNTS.size)
            metadata = {cursor.string(): cursor.value(cursor.take(_KIND)) for _ in range(entries)}
            found = dict(cursor.tensor() for _ in range(tensors))
            aligned = int(metadata.get("general.alignment", 32))
            begin = -(-cursor.at // aligned) * aligned
        except (struct.error, IndexError, ZeroDivisionError) as exc:
            raise ValueError(f"{file} ends before its header does") from exc
        lengths = {key: value.length for key, value in metadata.items() if isinstance(value, _Long)}
        short = {key: value for key, value in metadata.items() if not isinstance(value, _Long)}
        return Header(short, lengths, found, max(0, len(data) - begin))


@dataclass(frozen=True, slots=True)
class _Long:
    """A list whose entries are only counted."""

    length: int


class _Cursor:
    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self.at = at

    def take(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return value

    def string(self) -> str:
        length = self.take(_SIZE)
        if length > len(self._data) - self.at:
            raise IndexError(length)
        text = self._data[self.at : self.at + length]
        self.at += length
        return text.decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _LIST:
            return self._list()
        if kind not in _NUMBERS:
            raise IndexError(kind)
        return self.take(_NUMBERS[kind])

    def _list(self) -> Any:
        kind, length = _ARRAY.unpack_from(self._data, self.at)
        self.at += _ARRAY.size
        if length > len(self._data) - self.at:  # each entry takes a byte or more
            raise IndexError(length)
        if kind == _STRING:
            self._pass_strings(length)
            return _Long(length)
        if length > _LONG and kind in _NUMBERS:
            self.at += length * _NUMBERS[kind].size
            return _Long(length)
        return [self.value(kind) for _ in range(length)]

    def _pass_strings(self, count: int) -> None:
        # A vocabulary has hundreds of thousands of them.
        data, at, read = self._data, self.at, _SIZE.unpack_from
        for _ in range(count):
            at += 8 + read(data, at)[0]
        self.at = at

    def tensor(self) -> tuple[str, int]:
        name = self.string()
        shape = [self.take(_SIZE) for _ in range(min(self.take(_KIND), 8))]
        self.take(_KIND)  # its type
        self.take(_SIZE)  # its offset
        return name, prod(shape)
