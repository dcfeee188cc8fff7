"""Lists of items as tensors have them: one for each row, padded or one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from recommender.api.open_inference.names import HISTORY, TIMES
from recommender.api.open_inference.tensors import Numbers, Tensor, Texts, refused
from recommender.api.options import Items
from recommender.errors import InvalidRequestError

MOST_ID: Final = 2**31 - 1
_PAIR: Final = 2
_FEW: Final = 1 << 13
"""Elements that are made Python's numbers at once, in some 0.2 ms; of more, those of each row in its turn."""


class Lists:
    """A list of items for each row: ids from `starts` to `ends` of the elements, or that many of the next keys.

    A row may have `most` items, and ids up to `last`. `width` is the number of places for a row's keys, 0 if rows
    follow one another without padding.
    """

    def __init__(
        self,
        name: str,
        elements: Numbers | Texts,
        starts: Sequence[int],
        ends: Sequence[int],
        most: int,
        width: int = 0,
        last: int = MOST_ID,
    ) -> None:
        self.name = name
        self._starts = starts
        self._ends = ends
        self._most = most
        self._width = width
        self._last = last
        self._keys = elements if isinstance(elements, Texts) else None
        self._large: Numbers | None = None
        self._ids: tuple[int, ...] = ()
        self._sound = False
        if not isinstance(elements, Texts) and elements.size:
            # All rows at once; if an element is no id it may still be padding.
            self._sound = bool(elements.min() >= 0 and elements.max() <= last)
            if elements.size <= _FEW:
                self._ids = tuple(elements.tolist())
            else:
                self._large = elements

    def ids(self, row: int) -> tuple[int, ...]:
        """The ids of a row; none if there are keys. Raises InvalidRequestError."""
        start, end = self._starts[row], self._ends[row]
        if end - start > self._most:
            advice = ": send the most recent ones" if self.name == HISTORY else ""
            raise refused(self.name, f"{end - start} items are more than the {self._most} that it may have{advice}")
        ids = self._ids[start:end] if self._large is None else tuple(self._large[start:end].tolist())
        if not self._sound:
            _check_ids(self.name, ids, self._last)
        return ids

    def take(self, row: int) -> Items:
        """Take the list of a row; rows are taken once, in order. Raises InvalidRequestError."""
        ids = self.ids(row)
        if self._keys is None:
            return Items(ids, ())
        count = self.size(row)
        return Items((), self._keys.take(self._width or count, count))

    def size(self, row: int) -> int:
        """How many elements a row has, padding of keys aside."""
        return self._ends[row] - self._starts[row]

    @property
    def has_keys(self) -> bool:
        """Whether items are named by keys."""
        return self._keys is not None


def lists_beside(tensors: Mapping[str, Tensor], name: str, rows: int, most: int, last: int = MOST_ID) -> Lists | None:
    """A tensor's values for each item of the histories, in the shape of the histories."""
    tensor, history = tensors.get(name), tensors.get(HISTORY)
    if tensor is None:
        return None
    if history is None or tensor.shape != history.shape:
        raise refused(name, f"its shape is {list(tensor.shape)}, and that of {HISTORY} is wanted")
    if name == TIMES:
        tensor.numbers()  # raises if they are BYTES
    return lists_of(tensors, name, "history_length", rows, most, last)


def lists_of(
    tensors: Mapping[str, Tensor], name: str, length_name: str, rows: int, most: int, last: int = MOST_ID
) -> Lists | None:
    """The lists that a tensor and its lengths make: padded ones, or one after another."""
    tensor, lengths = tensors.get(name), tensors.get(length_name)
    if tensor is None:
        if lengths is not None:
            raise refused(length_name, f"it needs {name}")
        return None
    padded = len(tensor.shape) > 1
    if padded and tensor.shape[0] != rows:
        raise wrong_shape(tensor, f"{rows} rows")
    width = tensor.shape[-1]
    if lengths is None:
        if not padded and rows > 1:
            raise wrong_shape(tensor, f"{rows} rows, or {length_name} as well")
        starts = range(0, rows * width, width) if width else [0] * rows
        return Lists(name, tensor.elements, starts, [start + width for start in starts], most, width, last)
    check_one_each(lengths, rows)
    counts = lengths.numbers().astype(np.int64)
    if counts.min() < 0 or counts.max() > width:
        raise refused(length_name, f"each must be from 0 to {width}, the size of {name}")
    if padded or rows == 1:
        begins = np.arange(rows, dtype=np.int64) * width
        return Lists(name, tensor.elements, begins.tolist(), (begins + counts).tolist(), most, width, last)
    ends = np.cumsum(counts)
    if ends[-1] != width:
        raise refused(length_name, f"the lengths make {ends[-1]}, and {name} has {width} elements")
    return Lists(name, tensor.elements, (ends - counts).tolist(), ends.tolist(), most, 0, last)


def excluded_lists(tensor: Tensor | None, rows: int, most: int) -> Lists | None:
    """The exclusions of each row: pairs of a row and an item, or keys as a history has them."""
    if tensor is None:
        return None
    if isinstance(tensor.elements, Texts):
        return lists_of({tensor.name: tensor}, tensor.name, "", rows, most)
    if len(tensor.shape) != _PAIR or tensor.shape[1] != _PAIR:
        raise wrong_shape(tensor, "[pairs, 2], each a row and an item")
    pairs = tensor.elements.reshape(-1, _PAIR)
    of_rows, items = pairs[:, 0], pairs[:, 1]
    if len(pairs) and (of_rows.min() < 0 or of_rows.max() >= rows):
        raise refused(tensor.name, f"each pair begins with a row, from 0 to {rows - 1}")
    if (of_rows[1:] < of_rows[:-1]).any():
        # Numbers of two bytes are sorted by radix, in a tenth of the time.
        narrow = np.uint16 if rows <= 1 << 16 else np.uint32
        order = np.argsort(of_rows.astype(narrow), kind="stable")
        of_rows, items = of_rows[order], items[order]
    bounds = np.searchsorted(of_rows, np.arange(rows + 1)).tolist()
    return Lists(tensor.name, items, bounds[:-1], bounds[1:], most)


def _check_ids(name: str, ids: Sequence[int], last: int) -> None:
    """Raise InvalidRequestError unless all of these are from 0 to `last`."""
    if ids and (min(ids) < 0 or max(ids) > last):
        place, item = next((place, item) for place, item in enumerate(ids) if not 0 <= item <= last)
        raise refused(f"{name}[{place}]", f"{item} is not from 0 to {last}")


def check_one_each(tensor: Tensor, rows: int) -> None:
    """Raise InvalidRequestError unless a tensor has one element for each row."""
    if tensor.shape not in {(rows,), (rows, 1)}:
        raise wrong_shape(tensor, f"[{rows}] or [{rows}, 1]")


def wrong_shape(tensor: Tensor, wanted: str) -> InvalidRequestError:
    """The refusal of a tensor for its shape."""
    return refused(tensor.name, f"its shape is {list(tensor.shape)}, and {wanted} is wanted")
