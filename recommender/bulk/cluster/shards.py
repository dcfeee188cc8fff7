"""Cut a job into shards: runs of the input's rows that are jobs themselves, each with a separate folder.

The cut depends on the input and the options alone. So it is the same when the job is resumed on another cluster.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from recommender.bulk.files.inputs import Inputs
from recommender.bulk.job import JobOptions

_SHARDS = 128
"""Shards of a large input, about: several for each worker of most clusters, so that all end at about the same time."""
_PIECES = 4
"""Pieces of a Parquet row group at most. Each piece decodes those before it in vain."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of an input: `rows` after the first `first_row` of its files, None for all."""

    number: int
    inputs: Inputs
    first_row: int = 0
    rows: int | None = None

    @property
    def folder(self) -> str:
        """The name of its output folder. The order of names is that of the input."""
        return f"shard-{self.number:05}"


def cut_into_shards(inputs: Inputs, options: JobOptions) -> list[Shard]:
    """The shards of an input, in its order.

    Parquet is cut at row groups, and within large ones. Other files stay whole; with `limit_rows` all are one shard.
    """
    limit = options.limit_rows
    if inputs.groups is None:
        if limit is not None:
            return [Shard(0, inputs, rows=limit)]
        return [Shard(number, inputs.some(*run)) for number, run in enumerate(_runs_of_files(inputs))]
    total = sum(map(sum, inputs.groups)) if limit is None else min(sum(map(sum, inputs.groups)), limit)
    offsets = [0, *accumulate(map(sum, inputs.groups))]
    shards: list[Shard] = []
    start = 0
    for end in _borders(inputs.groups, total, options.part_rows):
        first, after = bisect_right(offsets, start) - 1, bisect_left(offsets, end)
        shards.append(Shard(len(shards), inputs.some(first, after), start - offsets[first], end - start))
        start = end
    return shards


def _runs_of_files(inputs: Inputs) -> Iterator[tuple[int, int]]:
    """Runs of files of nearly the same size, by the first one and the one after the last."""
    first, size = 0, 0
    for place, file in enumerate(inputs.files):
        size += file.size
        if size * _SHARDS >= inputs.bytes:
            yield first, place + 1
            first, size = place + 1, 0
    if first < len(inputs.files):
        yield first, len(inputs.files)


def _borders(groups: Sequence[Sequence[int]], total: int, part_rows: int) -> Iterator[int]:
    """The rows before which shards end: whole row groups, or pieces of whole parts of them."""
    wanted = _whole_parts(total, _SHARDS, part_rows)
    start = row = 0
    for group in (rows for file in groups for rows in file):
        step = max(wanted, _whole_parts(group, _PIECES, part_rows))
        for border in (*range(row + step, row + group, step), row + group):
            end = min(border, total)
            if end - start >= wanted or start < end == total:
                yield end
                start = end
        row += group


def _whole_parts(rows: int, pieces: int, part_rows: int) -> int:
    """Rows of one of so many pieces, rounded up to parts; one part at least."""
    return max(-(-rows // (pieces * part_rows)), 1) * part_rows
