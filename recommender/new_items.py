"""New items: vectors of items that a model's catalogue lacks, ranked next to it until a version has them."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Truths: TypeAlias = npt.NDArray[np.bool_]
AttributeValues: TypeAlias = Mapping[str, bool | int | float | str | Sequence[str]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class NewItems:
    """New items of one version: ids int64 [n], ascending and beyond the catalogue, with a key and a vector each.

    `vectors` are float32 [n, d], `biases` float32 [n]. `attributes`, if any, are for filters. Immutable, and shared by
    reference.
    """

    ids: npt.NDArray[np.int64]
    keys: Sequence[str]
    vectors: Floats
    biases: Floats
    attributes: Sequence[AttributeValues] = ()
    largest: float = field(init=False)
    """The largest absolute value among vectors and biases."""
    _rows: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        values = (self.vectors, self.biases)
        object.__setattr__(self, "largest", max(float(np.abs(each).max(initial=0.0)) for each in values))

    def __len__(self) -> int:
        return len(self.ids)

    def id_of(self, key: str) -> int | None:
        """The id of a key; None if it is not among them."""
        if not self._rows:  # most requests name no new item
            self._rows.update(zip(self.keys, range(len(self.keys)), strict=True))
        row = self._rows.get(key)
        return None if row is None else int(self.ids[row])

    def key_of(self, item: int) -> str | None:
        """The key of an id; None if it is not among them."""
        row = bisect.bisect_left(self.ids, item)
        return self.keys[row] if row < len(self.ids) and self.ids[row] == item else None

    def among(self, ids: Collection[int]) -> Truths:
        """Which of the new items these ids name: bool [n]."""
        return np.isin(self.ids, np.fromiter(ids, np.int64, len(ids)))


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """The new items that a query may get: all, or those of the bool array `allowed` [n]."""

    items: NewItems
    allowed: Truths | None = None
