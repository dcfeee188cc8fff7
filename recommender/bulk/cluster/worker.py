"""Score shards on one machine of a cluster."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recommender.bulk.cluster.shards import Shard
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import Job, JobOptions, Summary
from recommender.bulk.model import BulkModel, open_pinned
from recommender.settings.settings import Settings

_PATIENCE = 120.0
"""Seconds to wait for a shard: the worker of a killed job may still end, or its locks on a file server expire."""


@dataclass(frozen=True, slots=True)
class Order:
    """All that a worker needs to know of a job; it can be pickled.

    `names` are the input's columns, `settings` those by field name over the worker's environment, and `sha256` is the
    digest that the model must have, None for any.
    """

    shards: Sequence[Shard]
    names: Sequence[str]
    output: str
    options: JobOptions
    model: str
    sha256: str | None
    settings: Mapping[str, object]
    threads: int
    batch_rows: int | None


@dataclass(frozen=True, slots=True)
class Done:
    """A shard's result, and the facts that its output depends on, as JSON values."""

    summary: Summary
    made_with: Mapping[str, object]


class Worker:
    """Scores shards of a job, one at a time, with a model that it loads for the first one."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._settings = Settings.load(order.settings)
        self._model: BulkModel | None = None

    def score(self, number: int) -> Done:
        """Score what is not done yet of a shard. Raises StartError as `Job.run` does, and if the model does not fit."""
        order, shard = self._order, self._order.shards[number]
        options = replace(order.options, first_row=shard.first_row, limit_rows=shard.rows)
        longest = self._settings.engine.engine_timeout_ms / 1e3
        job = Job(self._opened(), shard.inputs, options, longest=longest, names=order.names)
        summary = job.run(open_folder(posixpath.join(order.output, shard.folder), _PATIENCE), lambda _: None)
        facts = job.facts()
        return Done(summary, {name: facts[name] for name in ("model", "catalogue", "made_with")})

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _opened(self) -> BulkModel:
        order = self._order
        if self._model is None:
            self._model = open_pinned(
                self._settings, order.model, order.sha256, threads=order.threads, batch_rows=order.batch_rows
            )
        return self._model
