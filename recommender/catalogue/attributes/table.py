"""The table of items in memory: typed columns, one copy, with one more row than the table has items.

The last row is for items that the table does not have: each of their attributes is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NumberKind: TypeAlias = Literal["bool", "int", "double", "timestamp"]
Truths: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of bools, int64, float64, or timestamps as int64 microseconds since 1970 in UTC.

    `values` is anything where `present` is false.
    """

    kind: NumberKind
    values: npt.NDArray[Any]
    present: Truths

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.values.nbytes + self.present.nbytes


@dataclass(frozen=True, slots=True)
class Strings:
    """A column of strings: row i has `words[codes[i]]`, and none where the code is -1."""

    words: pa.Array
    codes: npt.NDArray[np.int32]
    kind: Literal["string"] = "string"

    @property
    def present(self) -> Truths:
        """Which rows have one."""
        return self.codes >= 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return int(self.words.nbytes) + self.codes.nbytes


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists of strings: those of row i are `codes[offsets[i]:offsets[i + 1]]`, as in `Strings`."""

    words: pa.Array
    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    present: Truths
    kind: Literal["list of strings"] = "list of strings"

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return int(self.words.nbytes) + self.codes.nbytes + self.offsets.nbytes + self.present.nbytes


Column: TypeAlias = Numbers | Strings | Lists


@dataclass(frozen=True, slots=True)
class ItemTable:
    """A table that was read: its `columns` by their names, and the `keys` of its rows, a string each.

    A table that is `by_id` has the ids of one version's items as its keys, an int64 each. `digest` is the SHA-256 of
    its file, in lower-case hex.
    """

    columns: Mapping[str, Column]
    keys: pa.Array
    digest: str
    by_id: bool = False

    def __len__(self) -> int:
        """Number of items that it has."""
        return len(self.keys)

    @property
    def kinds(self) -> Mapping[str, str]:
        """The type of each column."""
        return {name: column.kind for name, column in self.columns.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return int(self.keys.nbytes) + sum(column.nbytes for column in self.columns.values())
