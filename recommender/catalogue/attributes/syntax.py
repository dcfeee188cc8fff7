"""Filters as syntax trees: Google's CEL library parses them, and what they may be made of is decided here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from cel_expr_python import cel
from google.protobuf import any_pb2

from recommender.catalogue.attributes.errors import filter_fault
from recommender.catalogue.attributes.parsed_expr import parsed_expr

ITEM, PARAMETERS = "item", "params"
"""The names of the item's attributes and of the parameters in a filter."""
_MOST_NODES = 500
_WHERE = re.compile(r"<input>:(\d+):(\d+): (.*)")
_SHOWN = 200

Constant: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant. Every node has `at`, the place of its first character in the filter, from 1 on."""

    value: Constant
    at: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """`item.name`."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """`params.name`."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Has:
    """`has(item.name)`."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A list that is written out."""

    elements: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """An operator, as CEL names it, or `timestamp`."""

    function: str
    arguments: tuple[Node, ...]
    at: int


Node: TypeAlias = Literal | Attribute | Parameter | Has | Listed | Call

_ARGUMENTS: Final[Mapping[str, int]] = {
    "_&&_": 2,
    "_||_": 2,
    "!_": 1,
    "_==_": 2,
    "_!=_": 2,
    "_<_": 2,
    "_<=_": 2,
    "_>_": 2,
    "_>=_": 2,
    "@in": 2,
    "timestamp": 1,
}
"""The functions that filters have, and how many arguments each takes."""
_NOT_IN_FILTERS = "a filter has comparisons, in, &&, ||, !, has() and timestamp() only"


def parse(text: str) -> Node:
    """Parse a filter. Raises InvalidRequestError, with the position of the fault, if it is malformed."""
    try:
        expression = _environment().compile(text, disable_check=True)
    except (RuntimeError, ValueError, UnicodeError) as error:
        found = _WHERE.search(str(error))
        if found is None and "recursion limit" in str(error):
            raise filter_fault("it is too complex: brackets and operators are nested too deep", 1) from error
        if found is None:
            raise filter_fault(str(error).splitlines()[0][:_SHOWN], 1) from error
        before = text.split("\n")[: int(found[1]) - 1]
        at = sum(len(line) + 1 for line in before) + int(found[2])
        raise filter_fault(found[3].removesuffix(" [INVALID_ARGUMENT]")[:_SHOWN], at) from error
    packed = any_pb2.Any.FromString(expression.serialize())
    parsed = parsed_expr().FromString(packed.value)
    return _Reader(dict(parsed.source_info.positions)).node(parsed.expr)


class _Reader:
    """Turns the library's nodes into ours; `positions` has the place of each by its id, counted from 0."""

    def __init__(self, positions: Mapping[int, int]) -> None:
        self._positions = positions
        self._nodes = 0

    def node(self, expr: Any) -> Node:  # noqa: ANN401 (a message of a type that is made while running)
        at = self._positions.get(expr.id, 0) + 1
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise filter_fault(f"it is too complex: more than {_MOST_NODES} names, values and operators", at)
        kind = expr.WhichOneof("kind")
        read: Callable[[Any, int], Node] | None = {
            "const_expr": self._literal,
            "select_expr": self._selected,
            "call_expr": self._call,
        }.get(kind)
        if read is not None:
            return read(getattr(expr, kind), at)
        if kind == "list_expr":
            return Listed(tuple(self.node(element) for element in expr.list_expr.elements), at)
        if kind == "ident_expr":
            name = expr.ident_expr.name
            raise filter_fault(
                f"{name!r} is unknown: write an attribute as {ITEM}.NAME and a parameter as {PARAMETERS}.NAME", at
            )
        raise filter_fault(_NOT_IN_FILTERS, at)

    def _literal(self, constant: Any, at: int) -> Literal:  # noqa: ANN401
        kind = constant.WhichOneof("kind")
        if kind not in {"bool_value", "int64_value", "double_value", "string_value"}:
            raise filter_fault("a value is a bool, an int, a double or a string", at)
        return Literal(getattr(constant, kind), at)

    def _selected(self, select: Any, at: int) -> Attribute | Parameter | Has:  # noqa: ANN401
        of = select.operand.ident_expr.name
        if of not in (ITEM, PARAMETERS):
            raise filter_fault(f"only {ITEM} and {PARAMETERS} have fields: write {ITEM}.NAME or {PARAMETERS}.NAME", at)
        # The library counts the place of the dot, or that of `has`.
        if select.test_only:
            if of != ITEM:
                raise filter_fault(f"has() takes an attribute, such as {ITEM}.{select.field}", at)
            return Has(select.field, at)
        start = max(self._positions.get(select.operand.id, 0) + 1, 1)
        return Attribute(select.field, start) if of == ITEM else Parameter(select.field, start)

    def _call(self, call: Any, at: int) -> Node:  # noqa: ANN401
        function = call.function
        if call.HasField("target") or _ARGUMENTS.get(function) != len(call.args):
            raise filter_fault(f"{_told(function)} is not for filters: {_NOT_IN_FILTERS}", at)
        return Call(function, tuple(self.node(argument) for argument in call.args), at)


def _told(function: str) -> str:
    """A function as it is written."""
    return function.strip("_@").replace("_", " ") or function


@lru_cache(maxsize=1)
def _environment() -> cel.Env:
    """The environment that filters are parsed in; to make one takes milliseconds."""
    return cel.NewEnv()
