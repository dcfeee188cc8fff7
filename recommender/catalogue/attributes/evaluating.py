"""Evaluate a filter over all rows of a table at once.

A predicate is true, false or unknown for a row. A comparison with a missing value is unknown, and so is its negation.
`&&` is false if a side is false, `||` true if a side is true, whatever the other is: CEL treats errors so. A row is
selected where the filter is true.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recommender.catalogue.attributes.errors import filter_fault
from recommender.catalogue.attributes.filters import Parameters, Scalar
from recommender.catalogue.attributes.syntax import Attribute, Call, Has, Listed, Literal, Node, Parameter
from recommender.catalogue.attributes.table import Column, ItemTable, Lists, Numbers, Strings, Truths

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "_==_": operator.eq,
    "_!=_": operator.ne,
    "_<_": operator.lt,
    "_<=_": operator.le,
    "_>_": operator.gt,
    "_>=_": operator.ge,
}
_MIRRORED: Final = {"_<_": "_>_", "_<=_": "_>=_", "_>_": "_<_", "_>=_": "_<=_"}
_ORDERS: Final = frozenset(_MIRRORED)
_NUMBERS: Final = frozenset({"int", "double"})
_ARROW: Final = {
    "_==_": "equal",
    "_!=_": "not_equal",
    "_<_": "less",
    "_<=_": "less_equal",
    "_>_": "greater",
    "_>=_": "greater_equal",
}
_INT64: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class _Truth:
    """For which rows a predicate is true, and for which false."""

    true: Truths
    false: Truths


@dataclass(frozen=True, slots=True)
class _Value:
    """One value for all rows; a timestamp is an int."""

    kind: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class _Values:
    """A list of values for all rows."""

    values: tuple[_Value, ...]


_Operand: TypeAlias = Column | _Value | _Values


def evaluate(node: Node, table: ItemTable, parameters: Parameters) -> Truths:
    """Which rows a filter selects, the last one, of which nothing is known, included.

    Raises InvalidRequestError if it names what there is not, or compares what cannot be compared.
    """
    return _Evaluation(table, parameters).truth(node).true


class _Evaluation:
    """One filter over one table."""

    def __init__(self, table: ItemTable, parameters: Parameters) -> None:
        self._columns = table.columns
        self._parameters = parameters
        self._rows = len(table) + 1

    def truth(self, node: Node) -> _Truth:
        """A node that is a predicate."""
        match node:
            case Call("_&&_" | "_||_" as function, (left, right)):
                return _joined(function, self.truth(left), self.truth(right))
            case Call("!_", (negated,)):
                truth = self.truth(negated)
                return _Truth(truth.false, truth.true)
            case Call("@in"):
                return self._contained(node)
            case Call(function, (left, right)) if function in _OPERATORS:
                return self._compared(node, self._operand(left), self._operand(right))
            case Has(name, at):
                present = self._column(name, at).present
                return _Truth(present, ~present)
            case _:
                return self._itself(node)

    def _itself(self, node: Node) -> _Truth:
        """A bool that is a predicate by itself."""
        operand = self._operand(node)
        if isinstance(operand, Numbers) and operand.kind == "bool":
            return _Truth(operand.present & operand.values, operand.present & ~operand.values)
        if isinstance(operand, _Value) and operand.kind == "bool":
            return self._everywhere(bool(operand.value))
        raise filter_fault(f"a filter is true or false, and this is {_told(operand)}", node.at)

    def _everywhere(self, value: bool) -> _Truth:  # noqa: FBT001 (the value)
        true = np.full(self._rows, value)
        return _Truth(true, ~true)

    def _column(self, name: str, at: int) -> Column:
        if (column := self._columns.get(name)) is None:
            raise filter_fault(f"the table of items has no attribute {name!r}{nearest(name, self._columns)}", at)
        return column

    def _operand(self, node: Node) -> _Operand:
        """A node that is compared, or that something is in."""
        match node:
            case Attribute(name, at):
                return self._column(name, at)
            case Literal(value, _):
                return _valued(value)
            case Parameter(name, at):
                if (given := self._parameters.get(name)) is None:
                    raise filter_fault(f"there is no parameter {name!r}{nearest(name, self._parameters)}", at)
                return _Values(tuple(map(_valued, given))) if isinstance(given, tuple) else _valued(given)
            case Listed(elements, at):
                values = [self._operand(element) for element in elements]
                if not all(isinstance(value, _Value) for value in values):
                    raise filter_fault("a list has single values and parameters only", at)
                return _Values(tuple(value for value in values if isinstance(value, _Value)))
            case Call("timestamp", (argument,), at):
                return _timestamp(self._operand(argument), at)
            case _:
                raise filter_fault("a predicate cannot be compared: join predicates by &&, || and !", node.at)

    def _compared(self, node: Call, left: _Operand, right: _Operand) -> _Truth:
        function = node.function
        if isinstance(left, _Value) and not isinstance(right, _Value):
            left, right, function = right, left, _MIRRORED.get(function, function)
        for side in (left, right):
            if isinstance(side, _Values | Lists):
                raise filter_fault(f"{_told(side)} is not compared: use `in`", node.at)
        assert not isinstance(left, _Values | Lists)  # noqa: S101 (refused above; so mypy sees it)
        assert not isinstance(right, _Values | Lists)  # noqa: S101
        if left.kind != right.kind and not {left.kind, right.kind} <= _NUMBERS:
            raise filter_fault(f"{_told(left)} is compared with {_told(right)}", node.at)
        if left.kind == "bool" and function in _ORDERS:
            raise filter_fault("bools have no order: compare them by == and !=", node.at)
        if isinstance(left, _Value) and isinstance(right, _Value):
            return self._everywhere(bool(_OPERATORS[function](left.value, right.value)))
        if isinstance(left, Strings):
            return _strings_compared(function, left, right)
        assert isinstance(left, Numbers)  # noqa: S101 (a column: values stand on the right)
        if isinstance(right, Numbers):
            return _known(_OPERATORS[function](left.values, right.values), left.present & right.present)
        assert isinstance(right, _Value)  # noqa: S101 (strings are compared with strings)
        return _known(compare(function, left.values, right.value), left.present)

    def _contained(self, node: Call) -> _Truth:
        left, right = (self._operand(argument) for argument in node.arguments)
        if isinstance(right, Lists):
            if not (isinstance(left, _Value) and left.kind == "string"):
                raise filter_fault(f"{_told(left)} is sought in {_told(right)}: name one string", node.at)
            return _known(_having(right, str(left.value)), right.present)
        if not isinstance(right, _Values):
            raise filter_fault(f"`in` takes a list, and this is {_told(right)}", node.arguments[1].at)
        if isinstance(left, _Values | Lists):
            raise filter_fault(f"{_told(left)} is in no list: seek one value", node.at)
        for value in right.values:
            if value.kind != left.kind and not {left.kind, value.kind} <= _NUMBERS:
                raise filter_fault(f"{_told(left)} is sought in a list that has {_told(value)}", node.at)
        values = [value.value for value in right.values]
        if isinstance(left, _Value):
            return self._everywhere(left.value in values)
        if isinstance(left, Strings):
            found = pc.is_in(left.words, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)
            return _by_word(left, found)
        return _known(_among(left, values), left.present)


def compare(function: str, values: np.ndarray, value: Scalar) -> Truths:
    """Compare int64 or float64 with one number as exactly as if both were real numbers."""
    if isinstance(value, float) and values.dtype == np.int64 and math.isfinite(value):
        if not value.is_integer():
            if function in ("_==_", "_!=_"):
                return np.full(len(values), function == "_!=_")
            # Above 2.5 is above 2, below 2.5 is at most 2.
            value, function = math.floor(value), "_>_" if function in ("_>_", "_>=_") else "_<=_"
        else:
            value = int(value)
    if isinstance(value, int) and values.dtype == np.int64 and not -_INT64 <= value < _INT64:
        value = math.inf if value > 0 else -math.inf
    if isinstance(value, int) and values.dtype == np.float64:
        near = float(value)
        if int(near) != value:  # beyond 2^53, between two doubles
            if function in ("_==_", "_!=_"):
                return np.full(len(values), function == "_!=_")
            below = near < value
            function = (
                {True: "_<=_", False: "_<_"}[below] if function in ("_<_", "_<=_") else "_>_" if below else "_>=_"
            )
        value = near
    return np.asarray(_OPERATORS[function](values, value), np.bool_)


def _joined(function: str, left: _Truth, right: _Truth) -> _Truth:
    if function == "_&&_":
        return _Truth(left.true & right.true, left.false | right.false)
    return _Truth(left.true | right.true, left.false & right.false)


def _known(true: Truths, present: Truths) -> _Truth:
    return _Truth(true & present, ~true & present)


def _by_word(column: Strings, of_words: Truths) -> _Truth:
    """The truth of a predicate for each word, and so for each row."""
    if not len(of_words):
        return _Truth(np.zeros(len(column.codes), np.bool_), np.zeros(len(column.codes), np.bool_))
    return _known(of_words[column.codes], column.present)


def _strings_compared(function: str, left: Strings, right: _Operand) -> _Truth:
    compared = getattr(pc, _ARROW[function])
    if isinstance(right, _Value):
        return _by_word(left, compared(left.words, pa.scalar(right.value, pa.string())).to_numpy(zero_copy_only=False))
    assert isinstance(right, Strings)  # noqa: S101 (strings are compared with strings)
    present = left.present & right.present
    if not present.any():
        return _Truth(present, present)
    words = [column.words.take(pa.array(np.where(present, column.codes, 0))) for column in (left, right)]
    return _known(compared(*words).to_numpy(zero_copy_only=False), present)


def _among(column: Numbers, values: Sequence[Scalar]) -> Truths:
    """Which of a column's values are in a list."""
    kind = {"bool": bool, "double": float}.get(column.kind, int)
    alike = [value for value in values if type(value) is kind]
    found = np.isin(column.values, alike) if alike else np.zeros(len(column.values), np.bool_)
    for value in values:
        if type(value) is not kind:
            found |= compare("_==_", column.values, value)
    return found


def _having(column: Lists, word: str) -> Truths:
    """Which rows' lists hold a word."""
    found = np.zeros(len(column.present), np.bool_)
    code = pc.index(column.words, pa.scalar(word, pa.string())).as_py() if len(column.words) else -1
    if code >= 0:
        places = np.flatnonzero(column.codes == code)
        found[np.searchsorted(column.offsets, places, side="right") - 1] = True
    return found


def _valued(value: Scalar) -> _Value:
    return _Value({bool: "bool", int: "int", float: "double", str: "string"}[type(value)], value)


def _timestamp(operand: _Operand, at: int) -> _Value:
    """A moment, from RFC 3339 text or from seconds since 1970."""
    if not isinstance(operand, _Value) or operand.kind not in ("string", "int"):
        raise filter_fault(
            f"timestamp() takes a string such as '2026-01-31T00:00:00Z', and this is {_told(operand)}", at
        )
    try:
        if isinstance(operand.value, str):
            moment = datetime.fromisoformat(operand.value)
            if moment.tzinfo is None:
                raise ValueError  # noqa: TRY301 (the same sentence)
        else:
            moment = datetime.fromtimestamp(operand.value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise filter_fault(
            f"{operand.value!r} is no time from year 1 to 9999 with its offset, such as '2026-01-31T00:00:00Z'", at
        ) from error
    since = moment - datetime.fromtimestamp(0, UTC)
    return _Value("timestamp", (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _told(operand: _Operand) -> str:
    if isinstance(operand, _Values):
        return "a list of values"
    kind = operand.kind
    return f"{'an' if kind == 'int' else 'a'} {kind}"


def nearest(name: str, names: Mapping[str, object]) -> str:
    """The name that may have been meant, or a few that there are."""
    if near := get_close_matches(name, names, 1):
        return f": did you mean {near[0]!r}?"
    return f": there are {', '.join(sorted(names)[:10])}" if names else ""
