"""The scorer for other people's pipelines: Ray Data, Spark, a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recommender.bulk.columns import canonical, find_columns
from recommender.bulk.model import BulkModel, open_pinned
from recommender.bulk.scoring import Scoring
from recommender.settings.settings import Settings

Arrays = Mapping[str, npt.NDArray[np.generic]]
B = TypeVar("B", pa.Table, Arrays)


class Scorer:
    """Scores batches of histories: Arrow tables, or mappings of numpy arrays, and gives back what it was given.

    `model` is what RECOMMENDER_MODEL takes. `columns` names the input's columns that are not called as the request's
    fields. `threads` is the CPUs to use, by default all that the process may. `settings` are settings by field name
    over those of the environment; `sha256` is the digest that the model must have. It can be pickled: what it loads
    stays behind, and is loaded at the first batch. An instance is used by one caller at a time. Calls raise StartError
    if the model or the columns do not fit.
    """

    def __init__(
        self,
        model: str,
        *,
        columns: Mapping[str, str] | None = None,
        ignore: Sequence[str] = (),
        exclude_history: bool = False,
        threads: int | None = None,
        batch_rows: int | None = None,
        settings: Mapping[str, object] | None = None,
        sha256: str | None = None,
    ) -> None:
        self._model = model
        self._columns = dict(columns or {})
        self._ignore = tuple(ignore)
        self._exclude_history = exclude_history
        self._threads = threads
        self._batch_rows = batch_rows
        self._settings = dict(settings or {})
        self._sha256 = sha256
        self._opened: tuple[BulkModel, ThreadPoolExecutor] | None = None

    def __call__(self, batch: B) -> B:
        """Score a batch; the result has a row for each of its rows, in their order."""
        if isinstance(batch, pa.Table):
            return cast(B, self.score(batch))
        table = pa.table({name: pa.array(list(column)) for name, column in batch.items()})
        scored = self.score(table)
        return cast(B, {name: scored.column(name).to_numpy() for name in scored.column_names})

    def score(self, table: pa.Table) -> pa.Table:
        """Score an Arrow table."""
        model, threads = self._open()
        columns = find_columns(table.column_names, self._columns, self._ignore, model.feature_names)
        scoring = Scoring(model, columns, exclude_history=self._exclude_history)
        task = scoring.read(canonical(table, columns))
        for _ in threads.map(lambda batch: scoring.rank(batch, task.answers), task.batches):
            pass
        return scoring.write(task.answers)[0]

    def close(self) -> None:
        """Free the model; the next batch loads it again."""
        if self._opened is not None:
            model, threads = self._opened
            threads.shutdown()
            model.close()
            self._opened = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> tuple[BulkModel, ThreadPoolExecutor]:
        if self._opened is None:
            model = open_pinned(
                Settings.load(self._settings),
                self._model,
                self._sha256,
                threads=self._threads,
                batch_rows=self._batch_rows,
            )
            self._opened = model, ThreadPoolExecutor(model.slots, "score")
        return self._opened
