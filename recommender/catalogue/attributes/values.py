"""The values of one column, for rules on items that are alike."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recommender.catalogue.attributes.table import Numbers, Strings
from recommender.new_items import NewItems, Truths


@dataclass(frozen=True, slots=True)
class ColumnValues:
    """The `Values` of a column, in whose `rows` a version's items stand, and of that of `new` items."""

    column: Numbers | Strings
    rows: npt.NDArray[np.int32]
    of_new: Numbers | Strings | None
    new: NewItems | None
    of_told: Numbers | Strings | None = None
    told_ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    told_rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Items of the version that the table lacks, ascending, and the rows of `of_told` that have them."""

    def of(self, ids: Sequence[int]) -> Sequence[Hashable]:
        """The value of each of these items; see `Values`."""
        places = np.array(ids, np.int64)
        if self.new is None or self.of_new is None:
            return self._of_own(places)
        own = places < len(self.rows)
        found = iter(self._of_own(places[own]))
        added = iter(_at(self.of_new, np.searchsorted(self.new.ids, places[~own])))
        return [next(found) if is_own else next(added) for is_own in own.tolist()]

    def having(self, values: Collection[Hashable]) -> tuple[Truths, Truths | None]:
        """Which items have one of these values; see `Values`."""
        of_new = None if self.of_new is None else _having(self.of_new, values)[:-1]
        found = _having(self.column, values)[self.rows]
        if self.of_told is not None:
            found[self.told_ids] = _having(self.of_told, values)[self.told_rows]
        return found, of_new

    def _of_own(self, ids: npt.NDArray[np.int64]) -> list[Hashable]:
        found = _at(self.column, self.rows[ids])
        if self.of_told is not None:
            for place in np.flatnonzero(np.isin(ids, self.told_ids)).tolist():
                row = self.told_rows[np.searchsorted(self.told_ids, ids[place])]
                (found[place],) = _at(self.of_told, np.array([row]))
        return found


def _at(column: Numbers | Strings, rows: npt.NDArray[np.integer]) -> list[Hashable]:
    """The values in these rows, None for a missing one."""
    if isinstance(column, Numbers):
        pairs = zip(column.values[rows].tolist(), column.present[rows].tolist(), strict=True)
        return [value if present else None for value, present in pairs]
    codes = column.codes[rows]
    if not len(column.words):
        return [None] * len(codes)
    words = column.words.take(pa.array(np.maximum(codes, 0))).to_pylist()
    return [word if code >= 0 else None for word, code in zip(words, codes.tolist(), strict=True)]


def _having(column: Numbers | Strings, values: Collection[Hashable]) -> Truths:
    """Which rows have one of these values, the last row, of which nothing is known, included."""
    if isinstance(column, Numbers):
        return np.isin(column.values, np.array(list(values), column.values.dtype)) & column.present
    if not len(column.words):
        return np.zeros(len(column.codes), np.bool_)
    of_words = pc.is_in(column.words, value_set=pa.array(list(values), pa.string())).to_numpy(zero_copy_only=False)
    return np.asarray(of_words[column.codes] & column.present)
