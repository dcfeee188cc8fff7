"""Read a model file's constants, and the nodes that read them, without loading the model.

An ONNX file is one protobuf message, and serving has no use for a second ONNX library: the few fields
needed here are read straight from the file, and gigabytes of numbers are stepped over. Field numbers are
those of `onnx.proto`. The file is read and not mapped: one that is cut short meanwhile is an error, not a SIGBUS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from recommender.engine.files import open_regular
from recommender.engine.protobuf import FileBytes, Message, damaged
from recommender.errors import ModelError

_GRAPH, _TRAINING, _FUNCTION, _OPSET_IMPORT = 7, 20, 25, 8
_MOST_DIGITS = 20
_MOST_DIMENSIONS = 64
_DEEPEST = 50
"""Graphs inside graphs. ONNX Runtime's own limit is lower."""
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

    `tables` are the constants of two or more dimensions, not of whole numbers, that a product or a look-up reads.
    `elsewhere` are the files that hold constants, as the model names them. `opset` is the version of its operators; 0
    if absent.
    """

    constants: tuple[Constant, ...]
    tables: tuple[Constant, ...]
    table_look_ups: frozenset[str]
    operators: frozenset[str]
    elsewhere: frozenset[str]
    opset: int

    @property
    def constant_bytes(self) -> int:
        """Bytes of the constants in memory, each once."""
        return sum(constant.size for constant in self.constants)

    @property
    def small(self) -> bool:
        """Whether the constants are so small that loading them twice does not matter.

        Such a model is fast enough for a second session to pay: one without exclusions and candidates, from which ONNX
        Runtime removes their nodes. That is a quarter of a small model's run.
        """
        return self.constant_bytes <= _SMALL_BYTES

    def check_tables(self) -> None:
        """Raise ModelError if a table holds NaN or infinity, which would reach the rows that read it."""
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
    found = _Found([], [], set())
    try:
        with open_regular(path) as file:
            model = Message(FileBytes(file), 0, file.seek(0, 2), path)
            if model.end == 0:
                raise damaged(path, "it is empty")
            graphs = opset = 0
            for field, value in model.fields():
                if not isinstance(value, Message):
                    continue
                if field == _GRAPH:
                    graphs += 1
                    _read_graph(value, found, 0)
                elif field == _OPSET_IMPORT:
                    opset = max(opset, _opset(value))
                elif field in {_TRAINING, _FUNCTION}:
                    _read_aside(value, field, found)
            if graphs != 1:
                raise damaged(path, "it has no graph")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    constants, nodes = found.constants, found.nodes
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
        frozenset(found.elsewhere),
        opset,
    )


def _opset(message: Message) -> int:
    """The version of ONNX's own operators; 0 for an import of others."""
    found = dict(message.fields())
    domain, number = found.get(1), found.get(2)
    own = not isinstance(domain, Message) or not domain.text()
    return number if own and isinstance(number, int) else 0


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    operator: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """Parts of the file read so far."""

    constants: list[Constant]
    nodes: list[_Node]
    elsewhere: set[str]


def _read_graph(graph: Message, found: _Found, depth: int) -> None:
    if depth > _DEEPEST:
        raise damaged(graph.path, "its graphs are nested too deep")
    for field, value in graph.fields():
        if isinstance(value, int):
            continue
        match field:
            case 1:
                found.nodes.append(_node(value, found, depth))
            case 5:
                found.constants.append(_constant(value, found))
            case 15:
                _read_sparse(value, found)
            case _:
                pass


def _read_aside(message: Message, field: int, found: _Found) -> None:
    """Read what only holds nodes: a function, or the graphs of a training step."""
    aside = _Found([], [], found.elsewhere)
    for inner, part in message.fields():
        if isinstance(part, Message):
            if field == _FUNCTION and inner == 7:  # noqa: PLR2004 (its nodes)
                _node(part, aside, 0)
            elif field == _FUNCTION and inner == 11:  # noqa: PLR2004 (attributes that callers may leave out)
                _read_attribute(part, aside, 0)
            elif field == _TRAINING and inner in {1, 2}:
                _read_graph(part, aside, 0)


def _read_sparse(message: Message, found: _Found) -> None:
    for field, value in message.fields():
        if field in {1, 2} and isinstance(value, Message):
            _constant(value, found)


def _node(message: Message, found: _Found, depth: int) -> _Node:
    name, operator, inputs = "", "", []
    for field, value in message.fields():
        match field, value:
            case 1, Message():
                inputs.append(value.text())
            case 3, Message():
                name = value.text()
            case 4, Message():
                operator = value.text()
            case 5, Message():
                _read_attribute(value, found, depth)
            case _:
                pass
    return _Node(name, operator, tuple(inputs))


def _read_attribute(message: Message, found: _Found, depth: int) -> None:
    """Read the graph of a branch or a loop, and where the numbers of a tensor stand."""
    for field, value in message.fields():
        match field, value:
            case ((6 | 11), Message()):
                _read_graph(value, found, depth + 1)
            case ((5 | 10), Message()):
                _constant(value, found)
            case ((22 | 23), Message()):
                _read_sparse(value, found)
            case _:
                pass


def _constant(message: Message, found: _Found) -> Constant:
    name, shape, element, path, offset, size = "", [], 0, message.path, 0, 0
    elsewhere: dict[str, str] = {}
    for field, value in message.fields():
        match field, value:
            case 1, int():
                shape.append(value)
            case 1, Message():
                shape.extend(islice(value.numbers(), _MOST_DIMENSIONS))
            case 2, int():
                element = value
            case 8, Message():
                name = value.text()
            case 4 | 5 | 7 | 9 | 10 | 11, Message():
                offset, size = value.start, value.end - value.start
            case 13, Message():
                entry = {number: part.text() for number, part in value.fields() if isinstance(part, Message)}
                elsewhere[entry.get(1, "")] = entry.get(2, "")
            case _:
                pass
    if len(shape) > _MOST_DIMENSIONS:
        raise damaged(message.path, "it holds a tensor of too many dimensions")
    if "location" in elsewhere:
        found.elsewhere.add(elsewhere["location"])
        path = message.path.parent / elsewhere["location"]
        offset = _whole(elsewhere.get("offset", "0"), message.path)
        size = _whole(elsewhere.get("length", "0"), message.path) or _rest(path, offset)
    return Constant(name, tuple(shape), element, path, offset, size)


def _whole(text: str, path: Path) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise damaged(path, f"it says {text[:_MOST_DIGITS]!r} where the place of a constant should stand")
    return int(text)


def _rest(path: Path, offset: int) -> int:
    return max(path.stat().st_size - offset, 0) if path.is_file() else 0


def _check_place(constant: Constant, model: Path) -> None:
    if constant.path == model:
        return
    if not constant.path.is_file():
        raise ModelError(
            f"{model} keeps its numbers in {constant.path.name}, which is not in its folder; copy both files"
        )
    found = constant.path.stat().st_size
    if found < constant.offset + constant.size:
        raise ModelError(
            f"{constant.path} has {found} bytes and {model.name} reads {constant.offset + constant.size}: it was cut "
            "short or replaced; copy both files together, or export the model again"
        )


def _first_bad(table: Constant, kind: np.dtype[Any]) -> list[int] | None:
    """The index of the first NaN or infinity in the table; read in pieces, so it takes little memory."""
    if table.size != math.prod(table.shape) * kind.itemsize:
        return None  # packed in another way, or of another size than its shape: ONNX Runtime's to refuse
    left = table.size // kind.itemsize
    done = 0
    with open_regular(table.path) as file:
        file.seek(table.offset)
        while left and len(numbers := np.fromfile(file, kind, min(left, _CHUNK))):
            finite = np.isfinite(numbers)
            if not finite.all():
                return [int(index) for index in np.unravel_index(done + int(finite.argmin()), table.shape)]
            done += len(numbers)
            left -= len(numbers)
    return None
