"""Cut the input's stream of rows into parts: the same parts from the same row on, however the stream is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recommender.bulk.columns import Columns, canonical
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import Inputs
from recommender.bulk.lists import Ints, numbers

_MOST_CELLS = 1 << 23
"""Ids and scores that a part reads and gives at most, about: it bounds the memory of a part."""


@dataclass(frozen=True, slots=True)
class InputPart:
    """Rows of the input from `first_row` on, in canonical form, and the files that they are from.

    `bytes` is how much of the input was read by its end, 0 where that is not known.
    """

    first_row: int
    table: pa.Table
    files: range
    bytes: int


def cut(
    inputs: Inputs, columns: Columns, *, skip: int, rows: int, limit: int | None, usual_k: int, most_k: int
) -> Iterator[InputPart]:
    """Read the input after its first `skip` rows, in parts of `rows` rows, or fewer if they are long.

    `limit` ends it after so many rows, `skip` included. A row is counted as giving `usual_k` items, or as its own limit
    says, `most_k` at most. Raises BulkError as `Inputs.tables` and `canonical` do.
    """
    gathered: list[pa.Table] = []
    first_row, cells, first_file, file, read = skip, 0, 0, 0, 0
    size = 0

    def whole() -> InputPart:
        try:
            table = pa.concat_tables(gathered, promote_options="permissive")
        except pa.ArrowException as error:
            raise BulkError(f"the files have columns of different types: {error}") from error
        return InputPart(first_row, table, range(first_file, file + 1), read)

    for table, file, read in inputs.tables(skip, columns.named().values()):  # noqa: B007 (`whole` reads them)
        rest = canonical(table, columns)
        if limit is not None:
            rest = rest.slice(0, max(limit - first_row - size, 0))
        while len(rest):
            if not gathered:
                first_file = file
            sums = np.cumsum(_cells(rest, usual_k, most_k))
            taken = min(rows - size, int(np.searchsorted(sums, _MOST_CELLS - cells)) + 1, len(rest))
            gathered.append(rest.slice(0, taken))
            size, cells, rest = size + taken, cells + int(sums[taken - 1]), rest.slice(taken)
            if size == rows or cells >= _MOST_CELLS:
                yield whole()
                gathered.clear()
                first_row, size, cells = first_row + size, 0, 0
        if limit is not None and first_row + size >= limit:
            break
    if gathered:
        yield whole()


def _cells(table: pa.Table, usual_k: int, most_k: int) -> Ints:
    """How many ids each row brings, and how many it asks for."""
    cells = np.full(len(table), usual_k, np.int64)
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == "limit":
            cells = np.maximum(cells, np.minimum(numbers(column), most_k))
        elif pa.types.is_list(column.type):
            cells = cells + pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return cells
