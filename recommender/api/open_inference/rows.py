"""Read a request of tensors: each row becomes an `Asked`, as each request of a BatchRecommend call does."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from recommender.api.messages import ceiling
from recommender.api.open_inference.tensors import Numbers, Tensor, Texts, read_tensors
from recommender.api.queries import Asked, Items, Limits, Options
from recommender.errors import InvalidRequestError, Violation
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import recommend_api_pb2 as api

HISTORY: Final = "user_history"
INPUTS: Final = (HISTORY, "history_length", "k", "excluded", "candidates", "candidates_length", "user")
_FIELDS: Final = {
    "item_ids": HISTORY,
    "item_keys": HISTORY,
    "excluded_item_ids": "excluded",
    "excluded_item_keys": "excluded",
    "candidate_item_ids": "candidates",
    "candidate_item_keys": "candidates",
    "limit": "k",
    "user_id": "user",
    "user_key": "user",
}
"""Fields of a RecommendRequest, and the inputs that stand for them."""
_WORDS: Final = {
    "neither item_ids nor item_keys": "no item",
    "by user_id": "by its id",
    "user_id": "user",
    "user_key": "user",
}
"""The same where descriptions name fields."""
_MOST_ID: Final = 2**31 - 1
_PAIR: Final = 2
_FEW: Final = 100
_ID_BYTES: Final = 8
_SHORT: Final = 64
"""Bytes of what describes a plain input, at most."""


class _Lists:
    """A list of items for each row: ids from `starts` to `ends` of the elements, or so many of the next keys.

    A row may have `most` items. `width` is what the keys of a row take up, 0 if they stand one row right after another.
    """

    def __init__(
        self,
        name: str,
        elements: Numbers | Texts,
        starts: Sequence[int],
        ends: Sequence[int],
        most: int,
        width: int = 0,
    ) -> None:
        self.name = name
        self._starts = starts
        self._ends = ends
        self._most = most
        self._width = width
        self._keys: Texts | None = None
        self._ids: tuple[int, ...] = ()
        self._sound = False
        if isinstance(elements, Texts):
            self._keys = elements
        elif elements.size:
            # All rows at once; if an element is no id it may still be padding.
            self._sound = bool(elements.min() >= 0 and elements.max() <= _MOST_ID)
            self._ids = tuple(elements.tolist())

    def ids(self, row: int) -> tuple[int, ...]:
        """The ids of a row; none if there are keys. Raises InvalidRequestError."""
        start, end = self._starts[row], self._ends[row]
        if end - start > self._most:
            advice = ": send the most recent ones" if self.name == HISTORY else ""
            raise _refused(self.name, f"{end - start} items are more than the {self._most} that it may have{advice}")
        ids = self._ids[start:end]
        if not self._sound:
            _check_ids(self.name, ids)
        return ids

    def take(self, row: int) -> Items:
        """Take the list of a row; rows are taken once, in order. Raises InvalidRequestError."""
        ids = self.ids(row)
        if self._keys is None:
            return Items(ids, ())
        count = self._ends[row] - self._starts[row]
        return Items((), self._keys.take(self._width or count, count))

    @property
    def has_keys(self) -> bool:
        """Whether items are named by keys."""
        return self._keys is not None


@dataclass(slots=True)
class Rows:
    """The rows of a request, each yet to be read, in order."""

    count: int
    model: str
    request_id: str
    options: Options
    """Of a row that has a history of ids and nothing else."""
    history: _Lists | None
    k: list[int] | None = None
    excluded: _Lists | None = None
    candidates: _Lists | None = None
    users: list[int] | Texts | None = None

    def read(self, row: int) -> Asked:
        """Read the next row. Raises InvalidRequestError, which names the row if there are several."""
        try:
            return self._read(row)
        except InvalidRequestError as error:
            raise about_inputs(error, row if self.count > 1 else None) from None

    def _read(self, row: int) -> Asked:
        plain = self.k is None and self.excluded is None and self.candidates is None
        history, keys = self._history(row)
        user = None if self.users is None else self._user(self.users, row)
        if plain and not keys and user is None and history:
            return Asked(history, max(history), self.request_id, self.model, self.options)
        options = replace(self.options, history_keys=keys, user=user)
        if plain and not keys and user is not None:
            return Asked(history, math.inf, self.request_id, self.model, options, max(history, default=-1))
        if self.k is not None:
            options.limit = self.k[row]
        if self.excluded is not None:
            options.excluded = _unless_empty(self.excluded.take(row))
        if self.candidates is not None:
            options.candidates = _unless_empty(self.candidates.take(row))
        return Asked(history, math.inf, self.request_id, self.model, options)

    def _history(self, row: int) -> tuple[tuple[int, ...], Sequence[str]]:
        if self.history is None:
            return (), ()
        if self.history.has_keys:
            return (), self.history.take(row).keys
        return self.history.ids(row), ()

    @staticmethod
    def _user(users: list[int] | Texts, row: int) -> int | str | None:
        if isinstance(users, Texts):
            return next(iter(users.take(1, 1)), None)
        if users[row] < 0:
            raise _refused("user", f"{users[row]} is no user: ids are 0 or more")
        return users[row]


class RowReader:
    """Reads requests within configured limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._no_options = Options(limits.reject_unknown, limits.reject_inputs)
        self._most_k = ceiling(api.RecommendRequest, "limit")
        self._most_bytes = limits.history * _ID_BYTES

    def plain(self, request: oip.ModelInferRequest, model: str, request_id: str) -> Asked | None:
        """Read a request of one history of raw ids and nothing else; None if it is another one, or breaks a rule."""
        inputs, contents = request.inputs, request.raw_input_contents
        if len(inputs) != 1 or len(contents) != 1:
            return None
        # Few requests differ in more than their contents: what describes them is read once.
        described = inputs[0].SerializeToString()
        raw = contents[0]
        size = len(raw)
        if len(described) > _SHORT or size != _plain_bytes(described) or not 0 < size <= self._most_bytes:
            return None
        history = struct.unpack(f"<{size >> 3}q", raw)
        # As in Reader.read: to sort a few takes less than to look through them twice.
        ends = sorted(history) if len(history) <= _FEW else (min(history), max(history))
        if ends[0] < 0 or ends[-1] > _MOST_ID:
            return None
        return Asked(history, ends[-1], request_id, model, self._no_options)

    def read(self, request: oip.ModelInferRequest, model: str, request_id: str) -> Rows:
        """Read what a request has, up to its rows. Raises InvalidRequestError if it is at fault as a whole."""
        tensors = read_tensors(request, INPUTS)
        history, users = tensors.get(HISTORY), tensors.get("user")
        if history is None and users is None:
            raise _refused("inputs", f"{HISTORY} is missing")
        if history is not None:
            count = _rows_of(history, tensors.get("history_length"))
        else:
            count = _rows_of(users, None) if users is not None and len(users.shape) > 1 else _size(users)
        limits = self._limits
        if not 0 < count <= limits.batch_requests:
            raise _refused(
                HISTORY if history is not None else "user",
                f"it has {count} rows, and a request may have 1 to {limits.batch_requests}",
            )
        return Rows(
            count,
            model,
            request_id,
            self._no_options,
            _lists(tensors, HISTORY, "history_length", count, limits.history),
            self._limit_of_each(tensors.get("k"), count),
            _excluded(tensors.get("excluded"), count, limits.excluded),
            _lists(tensors, "candidates", "candidates_length", count, limits.candidates),
            _users(users, count),
        )

    def _limit_of_each(self, tensor: Tensor | None, rows: int) -> list[int] | None:
        if tensor is None:
            return None
        numbers: list[int] = tensor.numbers().tolist()
        if tensor.shape in {(1,), (1, 1)}:
            numbers *= rows
        else:
            _check_one_each(tensor, rows)
        for number in numbers:
            if not 0 <= number <= self._most_k:
                raise _refused("k", f"{number} is not a number from 0 to {self._most_k}")
        return numbers


@lru_cache(maxsize=1024)
def _plain_bytes(described: bytes) -> int:
    """The size of the raw contents of an input that is one history of INT64; -1 if it is anything else."""
    sent = oip.ModelInferRequest.InferInputTensor.FromString(described)
    shape = tuple(sent.shape)
    one = len(shape) == 1 or (len(shape) == _PAIR and shape[0] == 1)
    if sent.name != HISTORY or sent.datatype != "INT64" or not one or sent.parameters or sent.HasField("contents"):
        return -1
    return shape[-1] * _ID_BYTES


def about_inputs(error: InvalidRequestError, row: int | None) -> InvalidRequestError:
    """Say an error about a RecommendRequest of the inputs that stand for its fields, and of a row if one is given."""
    place = "" if row is None else f"row {row}: "
    violations = []
    for each in error.violations:
        field, bracket, rest = each.field.partition("[")
        description = each.description
        for theirs, ours in _WORDS.items():
            description = description.replace(theirs, ours)
        violations.append(Violation(_FIELDS.get(field, field) + bracket + rest, place + description))
    return type(error)(*violations)


def _check_ids(name: str, ids: Sequence[int]) -> None:
    """Raise InvalidRequestError if one of these is no id."""
    if ids and (min(ids) < 0 or max(ids) > _MOST_ID):
        place, item = next((place, item) for place, item in enumerate(ids) if not 0 <= item <= _MOST_ID)
        raise _refused(f"{name}[{place}]", f"{item} is no id: ids run from 0 to {_MOST_ID}")


def _rows_of(tensor: Tensor, lengths: Tensor | None) -> int:
    """How many rows a tensor has: one without a dimension for them is one row, or as many as there are lengths."""
    if len(tensor.shape) > 1:
        return tensor.shape[0]
    return 1 if lengths is None else _size(lengths)


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None else math.prod(tensor.shape)


def _lists(tensors: dict[str, Tensor], name: str, length_name: str, rows: int, most: int) -> _Lists | None:
    """The lists that a tensor and its lengths make: padded ones, or one after another."""
    tensor, lengths = tensors.get(name), tensors.get(length_name)
    if tensor is None:
        if lengths is not None:
            raise _refused(length_name, f"it comes without {name}")
        return None
    padded = len(tensor.shape) > 1
    if padded and tensor.shape[0] != rows:
        raise _shape(tensor, f"{rows} rows")
    width = tensor.shape[-1]
    if lengths is None:
        if not padded and rows > 1:
            raise _shape(tensor, f"{rows} rows, or {length_name} beside it")
        starts = range(0, rows * width, width) if width else [0] * rows
        return _Lists(name, tensor.elements, starts, [start + width for start in starts], most)
    _check_one_each(lengths, rows)
    counts = lengths.numbers().astype(np.int64)
    if counts.min() < 0 or counts.max() > width:
        raise _refused(length_name, f"each must be from 0 to {width}, the size of {name}")
    if padded or rows == 1:
        begins = np.arange(rows, dtype=np.int64) * width
        return _Lists(name, tensor.elements, begins.tolist(), (begins + counts).tolist(), most, width)
    ends = np.cumsum(counts)
    if ends[-1] != width:
        raise _refused(length_name, f"the lengths make {ends[-1]}, and {name} has {width} elements")
    return _Lists(name, tensor.elements, (ends - counts).tolist(), ends.tolist(), most)


def _excluded(tensor: Tensor | None, rows: int, most: int) -> _Lists | None:
    """The exclusions of each row: pairs of a row and an item, or keys as a history has them."""
    if tensor is None:
        return None
    if isinstance(tensor.elements, Texts):
        return _lists({tensor.name: tensor}, tensor.name, "", rows, most)
    if len(tensor.shape) != _PAIR or tensor.shape[1] != _PAIR:
        raise _shape(tensor, "[pairs, 2], each a row and an item")
    pairs = tensor.elements.reshape(-1, _PAIR)
    of_rows, items = pairs[:, 0], pairs[:, 1]
    if len(pairs) and (of_rows.min() < 0 or of_rows.max() >= rows):
        raise _refused(tensor.name, f"each pair begins with a row, from 0 to {rows - 1}")
    if (of_rows[1:] < of_rows[:-1]).any():
        # Numbers of four bytes and less are sorted in time that grows with their count alone.
        order = np.argsort(of_rows.astype(np.uint32), kind="stable")
        of_rows, items = of_rows[order], items[order]
    bounds = np.searchsorted(of_rows, np.arange(rows + 1)).tolist()
    return _Lists(tensor.name, items, bounds[:-1], bounds[1:], most)


def _users(tensor: Tensor | None, rows: int) -> list[int] | Texts | None:
    if tensor is None:
        return None
    _check_one_each(tensor, rows)
    return tensor.elements if isinstance(tensor.elements, Texts) else tensor.elements.tolist()


def _check_one_each(tensor: Tensor, rows: int) -> None:
    """Raise InvalidRequestError unless a tensor has one element for each row."""
    if tensor.shape not in {(rows,), (rows, 1)}:
        raise _shape(tensor, f"[{rows}] or [{rows}, 1]")


def _shape(tensor: Tensor, wanted: str) -> InvalidRequestError:
    return _refused(tensor.name, f"its shape is {list(tensor.shape)}, and {wanted} is wanted")


def _unless_empty(items: Items) -> Items | None:
    return items if items.ids or items.keys else None


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(Violation(field, description))
