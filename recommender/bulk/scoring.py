"""Score tables: read their rows, make batches, and write the answers as a table. The core of the job and the Scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from recommender.bulk.answers import Answers, Counts
from recommender.bulk.batches import PlainBatch, QueryBatch, batches
from recommender.bulk.columns import Columns
from recommender.bulk.model import BulkModel
from recommender.bulk.rows import RowReader


@dataclass(frozen=True, slots=True)
class Task:
    """A table that was read: its batches, and where the answers go."""

    batches: Sequence[PlainBatch | QueryBatch]
    answers: Answers


class Scoring:
    """Scores tables of one set of columns with one model; several threads may rank at once.

    Raises BulkError if the model cannot answer any row of such columns.
    """

    def __init__(self, model: BulkModel, columns: Columns, *, exclude_history: bool = False) -> None:
        self._model = model
        self._columns = columns
        self._reader = RowReader(model.version, model.limits, columns, exclude_history=exclude_history)

    def read(self, table: pa.Table) -> Task:
        """Read the rows of a table in the form of `columns.canonical`."""
        rows = self._reader.read(table)
        some = list(batches(rows, self._model.batch_rows, self._model.contract))
        return Task(some, Answers(rows, self._model.version, self._model.contract))

    def rank(self, batch: PlainBatch | QueryBatch, answers: Answers) -> None:
        """Run one batch of a task."""
        self._model.ranker.rank(batch, answers)

    def write(self, answers: Answers) -> tuple[pa.Table, Counts]:
        """The output of a task, once all its batches are ranked."""
        return answers.table(self._columns.user)
