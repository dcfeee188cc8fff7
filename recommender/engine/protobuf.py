"""Protobuf messages in a file, read field by field without loading what is not asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from recommender.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 16
_LONGEST_TEXT = 1 << 16
_LONGEST_NUMBER = 10
"""Bytes of a 64-bit number."""


class FileBytes:
    """Bytes of a file, read in pieces: single bytes come from the last piece."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 0
        self._piece = b""

    def byte(self, at: int) -> int:
        """The byte at a place. Raises OSError if the file no longer reaches there."""
        if not 0 <= at - self._start < len(self._piece):
            self._start, self._piece = at, self.read(at, _WINDOW)
        if not self._piece:
            raise OSError("it was cut short while it was read")
        return self._piece[at - self._start]

    def read(self, at: int, size: int) -> bytes:
        """As many of `size` bytes from a place on as there are."""
        self._file.seek(at)
        return self._file.read(size)


@dataclass(frozen=True, slots=True)
class Message:
    """A protobuf message between two places of a file; bytes fields are returned as messages.

    Its methods raise ModelError if it is malformed, and OSError if the file is truncated meanwhile.
    """

    data: FileBytes
    start: int
    end: int
    path: Path

    def fields(self) -> Iterator[tuple[int, int | Message]]:
        """Every field's number with its value: a whole number, or where its bytes stand."""
        at = self.start
        while at < self.end:
            tag, at = self._varint(at)
            kind = tag & 7
            value: int | Message = 0
            if kind == _VARINT:
                value, at = self._varint(at)
            elif kind == _BYTES:
                size, at = self._varint(at)
                value = Message(self.data, at, at + size, self.path)
                at += size
            elif kind in {_FIXED32, _FIXED64}:
                at += 4 if kind == _FIXED32 else 8
            else:
                raise damaged(self.path, "it is not an ONNX model")
            if at > self.end:
                raise damaged(self.path, f"it ends {at - self.end} bytes too early, or is not an ONNX file")
            yield tag >> 3, value

    def text(self) -> str:
        """Its bytes as UTF-8."""
        if self.end - self.start > _LONGEST_TEXT:
            raise damaged(self.path, "it holds a name that is too long")
        return self.data.read(self.start, self.end - self.start).decode(errors="replace")

    def numbers(self) -> Iterator[int]:
        """Its bytes as packed whole numbers."""
        at = self.start
        while at < self.end:
            value, at = self._varint(at)
            yield value

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while at < self.end:
            byte = self.data.byte(at)
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 (the last byte of a number has no high bit)
                return value, at
            shift += 7
            if shift >= 7 * _LONGEST_NUMBER:
                break
        raise damaged(self.path, "it holds a number that does not end")


def damaged(path: Path, what: str) -> ModelError:
    """The error of a model file that cannot be read."""
    return ModelError(f"{path} is damaged: {what}; copy the file again, or export the model again")
