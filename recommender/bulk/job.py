"""A bulk job: an input, a model and an output folder, run part by part, and gone on with where it ended."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recommender.bulk.answers import Counts
from recommender.bulk.columns import find_columns
from recommender.bulk.files.inputs import Inputs
from recommender.bulk.files.manifest import Manifest, Part, resume
from recommender.bulk.files.output import Folder
from recommender.bulk.model import BulkModel
from recommender.bulk.parts import InputPart, cut
from recommender.bulk.pipeline import Pipeline
from recommender.bulk.scoring import Scoring, Task
from recommender.engine.provider import runtime_version

_TRIED_ROWS = 1000
_FEW_VALUES = ["source", "model_version", "error_kind"]
"""Columns that a dictionary makes smaller; of ids and scores it makes none, and takes time."""
PARQUET: Mapping[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": _FEW_VALUES}
"""How the output is written."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """A job's options: `columns` by their meaning, how many rows to read, and rows of a part."""

    columns: Mapping[str, str]
    ignore: Sequence[str] = ()
    exclude_history: bool = False
    part_rows: int = 100_000
    limit_rows: int | None = None
    first_row: int = 0
    """Rows of the input that are passed over."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: rows that are done, and in all (None if unknown), as a share, and those ranked by this run."""

    rows: int
    total: int | None
    share: float
    errors: int
    ranked: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A job's result: counts of all its rows, and this run's seconds, in all and by batch (sorted)."""

    counts: Counts
    parts: int
    rows_before: int
    """Rows that earlier runs had done."""
    seconds: float
    batch_seconds: array[float]

    @property
    def rows_per_second(self) -> float:
        """Rows of this run a second."""
        return (self.counts.rows - self.rows_before) / max(self.seconds, 1e-9)

    def batch_quantile(self, share: float) -> float | None:
        """The seconds that this share of the batches did not exceed; None if there was no batch."""
        return float(np.quantile(self.batch_seconds, share)) if len(self.batch_seconds) else None


@dataclass(frozen=True, slots=True)
class _Unit:
    part: InputPart
    task: Task


class Job:
    """Scores an input into a folder. `longest` is the seconds that a batch may take.

    `names` are the input's columns, by default those of its first file. Raises BulkError if the model cannot answer
    rows of such columns.
    """

    def __init__(
        self,
        model: BulkModel,
        inputs: Inputs,
        options: JobOptions,
        *,
        longest: float,
        names: Sequence[str] | None = None,
    ) -> None:
        names = inputs.names() if names is None else names
        self.columns = find_columns(names, options.columns, options.ignore, model.feature_names)
        self._model = model
        self._inputs = inputs
        self._options = options
        self._longest = longest
        self._scoring = Scoring(model, self.columns, exclude_history=options.exclude_history)
        self._pipeline: Pipeline[_Unit] | None = None
        self._stop = threading.Event()
        self._read_bytes = 0

    @property
    def total(self) -> int | None:
        """The number of rows to score; None if only reading the input gives it."""
        rows, limit = self._inputs.rows, self._options.limit_rows
        if rows is None:
            return None
        left = max(rows - self._options.first_row, 0)
        return left if limit is None else min(left, limit)

    def facts(self) -> dict[str, object]:
        """All that the output depends on, as JSON values: a change of one would change the output."""
        model, options = self._model, self._options
        return {
            "model": {"reference": model.reference, "version": model.version.label, "sha256": model.version.sha256},
            "input": [file.facts() for file in self._inputs.files],
            "columns": self.columns.named(),
            "options": {
                "exclude_history": options.exclude_history,
                "first_row": options.first_row,
                "limit_rows": options.limit_rows,
                "part_rows": options.part_rows,
                "batch_rows": model.batch_rows,
                "threads_of_a_run": model.threads,
                "num_recommendations": model.version.limit,
                "max_history": model.limits.history,
                "max_excluded": model.limits.excluded,
                "max_candidates": model.limits.candidates,
                "reject_unknown": model.limits.reject_unknown,
            },
            "catalogue": {"items": model.items_digest, "hidden": model.hidden_digest},
            "made_with": {
                "recommender": version("recommender"),
                "onnxruntime": runtime_version(),
                "pyarrow": pa.__version__,
                "provider": model.version.execution_provider,
            },
        }

    def run(self, folder: Folder, tick: Callable[[Progress], None]) -> Summary:
        """Score what is not done yet; `tick` is called some times a second. Blocks.

        Raises BulkError if the folder holds another job, if the input cannot be read or has changed, or if the output
        cannot be written. Raises StoppedError after `stop`.
        """
        began = time.monotonic()
        with folder.held():
            manifest = resume(folder, self.facts())
            before, counts = manifest.rows, manifest.counts
            pipeline = self._pipeline = Pipeline(
                lambda: self._units(before),
                self._scoring.rank,
                lambda unit: self._commit(unit, folder, manifest, counts),
                threads=self._model.slots,
                longest=self._longest,
            )
            if self._stop.is_set():
                pipeline.stop()
            if not manifest.complete:
                manifest.save(folder)
                pipeline.run(lambda: tick(self._progress(before, counts, pipeline.ranked)))
                manifest.complete = True
                manifest.save(folder)
        seconds = time.monotonic() - began
        return Summary(counts, len(manifest.parts), before, seconds, pipeline.seconds)

    def stop(self) -> None:
        """Let `run` end soon. Callable from any thread."""
        self._stop.set()
        if self._pipeline is not None:
            self._pipeline.stop()

    def try_out(self) -> Summary:
        """Score the first rows and write nothing."""
        began = time.monotonic()
        counts, seconds = Counts(), array("d")
        for unit in self._units(0, _TRIED_ROWS):
            for batch in unit.task.batches:
                started = time.monotonic()
                self._scoring.rank(batch, unit.task.answers)
                seconds.append(time.monotonic() - started)
            counts.add(self._scoring.write(unit.task.answers)[1])
        return Summary(counts, 0, 0, time.monotonic() - began, seconds)

    def _units(self, skip: int, limit: int | None = None) -> Iterator[_Unit]:
        version, options = self._model.version, self._options
        limit = options.limit_rows if limit is None else limit
        for part in cut(
            self._inputs,
            self.columns,
            skip=options.first_row + skip,
            rows=options.part_rows,
            limit=None if limit is None else options.first_row + limit,
            usual_k=version.limit,
            most_k=version.model.max_k,
        ):
            yield _Unit(part, self._scoring.read(part.table))

    def _commit(self, unit: _Unit, folder: Folder, manifest: Manifest, counts: Counts) -> None:
        """Write a part, and then the manifest that names it."""
        table, counted = self._scoring.write(unit.task.answers)
        content = pa.BufferOutputStream()
        pq.write_table(table, content, **PARQUET)
        written = content.getvalue()
        for place in unit.part.files:
            self._inputs.check(place)
        name = f"part-{len(manifest.parts):05}.parquet"
        folder.write(name, written)
        manifest.parts.append(
            Part(name, unit.part.first_row, counted.rows, written.size, counted.fallbacks, dict(counted.errors))
        )
        manifest.save(folder)
        counts.add(counted)
        self._read_bytes = unit.part.bytes

    def _progress(self, before: int, counts: Counts, ranked: int) -> Progress:
        rows, total = max(counts.rows, before + ranked), self.total
        done, whole = (rows, total) if total is not None else (self._read_bytes, self._inputs.bytes)
        share = done / max(whole, 1)
        return Progress(rows, total, min(share, 1.0), counts.failed, ranked)
