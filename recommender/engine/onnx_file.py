"""What a model file is made of, read without loading it: its constants, and the nodes that read them.

An ONNX file is one protobuf message, and serving has no use for a second ONNX library: the few fields
needed here are read straight from the file, and gigabytes of numbers are stepped over. Field numbers are
those of `onnx.proto`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from recommender.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5
_FLOATS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
"""The element types that can hold a NaN and that numpy can read, by their number in `onnx.proto`."""
_WHOLE_NUMBERS = frozenset({5, 6, 7, 9, 12, 13})
"""Element types of indices and masks; a table holds numbers that are multiplied."""
_TABLE_READERS = frozenset({"Gather", "GatherND", "GatherElements", "MatMul", "Gemm"})
_GATHERS = frozenset({"Gather", "GatherND", "GatherElements"})
_CHUNK = 1 << 22
"""Numbers read at once when a table is checked."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor stored with the model: its shape, and where its bytes stand."""

    name: str
    shape: tuple[int, ...]
    element: int
    path: Path
    offset: int
    size: int


_SMALL_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The constants of a model, and the names of the nodes that look rows up in one of them.

    `tables` are the constants of two or more dimensions, of other than whole numbers, that a product or a
    look-up reads.
    """

    constants: tuple[Constant, ...]
    tables: tuple[Constant, ...]
    table_look_ups: frozenset[str]
    operators: frozenset[str]

    @property
    def constant_bytes(self) -> int:
        """What the constants take in memory if each stands there once."""
        return sum(constant.size for constant in self.constants)

    @property
    def small(self) -> bool:
        """Whether the constants are so few that loading them once more costs nobody anything.

        Such a model is quick enough for a second session to pay: one that knows that nobody excludes items or names
        candidates, and from which ONNX Runtime drops all that would ask. That is a quarter of a small model's run.
        """
        return self.constant_bytes <= _SMALL_BYTES

    def check_tables(self) -> None:
        """Raise ModelError if a table holds a NaN or an infinity: it would reach whoever meets that row."""
        for table in self.tables:
            kind = _FLOATS.get(table.element)
            place = _first_bad(table, kind) if kind is not None else None
            if place is not None:
                raise ModelError(
                    f"{table.path} holds a NaN or an infinity: {table.name}{place} of {list(table.shape)}; "
                    "train or export the model again"
                )


def read_onnx_file(path: Path) -> OnnxFile:
    """Read what a model file is made of.

    Raises ModelError if the file is empty, cut short or no ONNX model, or if a file that it keeps its
    constants in is missing or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = _Message(data, 0, len(data), path)
            graphs = [value for field, value in model.fields() if field == _GRAPH and isinstance(value, _Message)]
            if len(graphs) != 1:
                raise _damaged(path, "it has no graph")
            constants: list[Constant] = []
            nodes: list[_Node] = []
            _read_graph(graphs[0], constants, nodes)
    except ValueError as error:
        raise _damaged(path, "it is empty") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    for constant in constants:
        _check_place(constant, path)
    read = {name for node in nodes if node.operator in _TABLE_READERS for name in node.inputs}
    tables = tuple(
        constant
        for constant in constants
        if constant.name in read and len(constant.shape) > 1 and constant.element not in _WHOLE_NUMBERS
    )
    names = {table.name for table in tables}
    look_ups = (node for node in nodes if node.operator in _GATHERS and names.intersection(node.inputs[:1]))
    return OnnxFile(
        tuple(constants),
        tables,
        frozenset(node.name for node in look_ups),
        frozenset(node.operator for node in nodes),
    )


@dataclass(frozen=True, slots=True)
class _Message:
    """A protobuf message between two places of a file; fields that are bytes come as messages of their own."""

    data: mmap.mmap
    start: int
    end: int
    path: Path

    def fields(self) -> Iterator[tuple[int, int | _Message]]:
        """Every field's number with its value: a whole number, or where its bytes stand."""
        at = self.start
        while at < self.end:
            tag, at = self._varint(at)
            kind = tag & 7
            value: int | _Message = 0
            if kind == _VARINT:
                value, at = self._varint(at)
            elif kind == _BYTES:
                size, at = self._varint(at)
                value = _Message(self.data, at, at + size, self.path)
                at += size
            elif kind in {_FIXED32, _FIXED64}:
                at += 4 if kind == _FIXED32 else 8
            else:
                raise _damaged(self.path, "it is no ONNX model")
            if at > self.end:
                raise _damaged(self.path, f"it ends {at - self.end} bytes too early")
            yield tag >> 3, value

    def text(self) -> str:
        return self.data[self.start : self.end].decode(errors="replace")

    def numbers(self) -> Iterator[int]:
        at = self.start
        while at < self.end:
            value, at = self._varint(at)
            yield value

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while at < self.end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 (the last byte of a number has no high bit)
                return value, at
            shift += 7
        raise _damaged(self.path, "it ends in the middle of a number")


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    operator: str
    inputs: tuple[str, ...]


def _read_graph(graph: _Message, constants: list[Constant], nodes: list[_Node]) -> None:
    for field, value in graph.fields():
        if isinstance(value, int):
            continue
        if field == 1:
            nodes.append(_node(value, constants, nodes))
        elif field == _INITIALIZER:
            constants.append(_constant(value))


def _node(message: _Message, constants: list[Constant], nodes: list[_Node]) -> _Node:
    name, operator, inputs = "", "", []
    for field, value in message.fields():
        match field, value:
            case 1, _Message():
                inputs.append(value.text())
            case 3, _Message():
                name = value.text()
            case 4, _Message():
                operator = value.text()
            case 5, _Message():  # an attribute, which may hold the graph of a branch or a loop
                for inner, part in value.fields():
                    if inner in {6, 11} and isinstance(part, _Message):
                        _read_graph(part, constants, nodes)
            case _:
                pass
    return _Node(name, operator, tuple(inputs))


def _constant(message: _Message) -> Constant:
    name, shape, element, path, offset, size = "", [], 0, message.path, 0, 0
    elsewhere: dict[str, str] = {}
    for field, value in message.fields():
        match field, value:
            case 1, int():
                shape.append(value)
            case 1, _Message():
                shape.extend(value.numbers())
            case 2, int():
                element = value
            case 8, _Message():
                name = value.text()
            case 4 | 5 | 7 | 9 | 10 | 11, _Message():
                offset, size = value.start, value.end - value.start
            case 13, _Message():
                entry = {number: part.text() for number, part in value.fields() if isinstance(part, _Message)}
                elsewhere[entry.get(1, "")] = entry.get(2, "")
            case _:
                pass
    if "location" in elsewhere:
        path = message.path.parent / elsewhere["location"]
        offset = int(elsewhere.get("offset", 0))
        size = int(elsewhere.get("length", 0)) or _rest(path, offset)
    return Constant(name, tuple(shape), element, path, offset, size)


def _rest(path: Path, offset: int) -> int:
    return max(path.stat().st_size - offset, 0) if path.is_file() else 0


def _check_place(constant: Constant, model: Path) -> None:
    if constant.path == model:
        return
    if not constant.path.is_file():
        raise ModelError(
            f"{model} keeps its numbers in {constant.path.name}, which is not beside it; copy both files together"
        )
    found = constant.path.stat().st_size
    if found < constant.offset + constant.size:
        raise ModelError(
            f"{constant.path} has {found} bytes and {model.name} reads {constant.offset + constant.size}: it was cut "
            "short or replaced; copy both files together, or export the model again"
        )


def _first_bad(table: Constant, kind: np.dtype[Any]) -> list[int] | None:
    """The place in the table of its first number that is none; read in pieces, so it takes little memory."""
    if table.size != math.prod(table.shape) * kind.itemsize:
        return None  # packed in another way, or of another size than its shape: ONNX Runtime's to refuse
    left = table.size // kind.itemsize
    done = 0
    with table.path.open("rb") as file:
        file.seek(table.offset)
        while left and len(numbers := np.fromfile(file, kind, min(left, _CHUNK))):
            finite = np.isfinite(numbers)
            if not finite.all():
                return [int(index) for index in np.unravel_index(done + int(finite.argmin()), table.shape)]
            done += len(numbers)
            left -= len(numbers)
    return None


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}; copy the file again, or export the model again")
