"""The engine: runs batches through one model's sessions, on its own threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from recommender.domain import Query, Ranking
from recommender.engine.contract import Contract, Feed, Outputs
from recommender.engine.machine import release_memory
from recommender.engine.masked.measuring import NAMING, measured, thresholds
from recommender.engine.masked.named import outcomes_of
from recommender.engine.masked.ways import Costs
from recommender.engine.provider import CPU, CoreMLOptions, CudaOptions, SessionPlan
from recommender.engine.ranking.batch import Batch
from recommender.engine.sessions import Describe, Sessions, as_model_error, open_sessions, quiet_options
from recommender.errors import InvalidRequestError, Violation
from recommender.settings.engine import EngineSettings
from recommender.threads import Job, Threads

_WARMED_HISTORY = 512
"""Items of the longest history whose bucket is run before the first request; longer ones are run on demand."""
_LARGE = 32
"""Rows of a run that is worth a handover: see `Threads.call`."""

R = TypeVar("R")

Run: TypeAlias = Callable[[Sequence[Query]], Awaitable[Sequence[Ranking]]]
"""Rank for every query, in their order."""


class OnnxEngine:
    """Runs one model on its own threads, as many runs at once as its sessions have slots.

    The event loop waits at most a millisecond, for a run of many rows to begin. `provider` is ONNX Runtime's name of
    the provider, `fallback_reason` why that is not the first choice of `auto`. `threads` is the CPUs of one run, and
    `captures` whether runs are captured as CUDA graphs. `mask_costs` choose the ways of rows with masks.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.model = sessions.model
        self.contract = sessions.contract
        self.provider = sessions.provider
        self.fallback_reason = sessions.fallback_reason
        self.threads = sessions.plan.threads
        self.memory = sessions.memory
        self.captures = sessions.captures
        self.mask_costs = Costs.supposed(self.contract.items)
        self._sessions = sessions
        self._threads = Threads(sessions.slots)
        self._active: set[onnxruntime.RunOptions] = set()

    @property
    def ways(self) -> Sequence[Run]:
        """Every way that queries go through the sessions: a check of the model takes each of them."""
        return (self.run,) if self._sessions.plain is None else (partial(self.run, general=True), self.run)

    @property
    def coarse_rows(self) -> tuple[int, int] | None:
        """The smallest and the largest batch that start from scores in 8 bits; None if the model has none."""
        span = self._sessions.coarse_rows
        return None if span is None else (int(span[0]), int(span[1]))

    @property
    def filter_thresholds(self) -> tuple[int, float] | None:
        """The most allowed items that are ranked exactly, and the least share of them for which more are asked for.

        Those of a batch in which every row has such a filter. None if a row with masks has one way only.
        """
        items = self.contract.items
        return thresholds(self.mask_costs, self.model, items, self._sessions.block) if self._has_ways else None

    @property
    def _has_ways(self) -> bool:
        return self.model.items is not None and {"k", "candidates"} <= self.contract.inputs

    async def run(
        self, queries: Sequence[Query], *, general: bool = False, padding: int | None = None
    ) -> Sequence[Ranking]:
        """Rank every query, in order, on the engine's own thread.

        Blocks the event loop until a run of `_LARGE` rows or more has begun, for a millisecond at most. `general` keeps
        it off the quicker session for queries without exclusions and candidates. `padding` replaces the model's own
        padding id. A cancelled call does not end the run; `terminate` does.

        For queries with `masks` exactly the allowed items are ranked, whatever their number; a model without the inputs
        `k` and `candidates` fails a row if it gives too few that are allowed. Masks may have another size than the
        catalogue: items beyond them are not allowed. One mask object that many queries share costs no more than one.

        Queries with `rules` are ranked by these; the model needs the inputs `k` and `candidates`, and gives scores.
        Items `beside` the catalogue, which need a model with the output `query`, are ranked with it.

        Raises InvalidRequestError if the only query holds an id that the model does not have, and FaultyRowsError if
        the model's output for some rows is invalid. Raises what ONNX Runtime raises if the run failed.
        """
        rank = partial(self._rank, queries, general=general, padding=padding)
        return await self._threads.call(rank, at_once=len(queries) >= _LARGE)

    def stage(self, queries: Sequence[Query]) -> Job[list[Ranking]] | PackedRun:
        """Queue a run for the next free thread; its result is that of `run`.

        The event loop packs and unpacks what takes next to no time: between two runs the thread would have to wait for
        the GIL to do it.
        """
        if not self.contract.light(queries):
            return self._threads.put(partial(self._rank, queries))
        feed, k = self.contract.pack(queries), max([query.k for query in queries])
        job = self._threads.put(lambda _: self._attempt(queries, partial(self._sessions.run, feed, k)))
        return PackedRun(job, self.contract, queries)

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """As `run`, on the caller's thread; several threads may at once."""
        return self._rank(queries, lambda: None)

    def run_feed(self, feed: Feed, k: int) -> Outputs:
        """Run a packed feed whose rows want at most `k` recommendations, on the caller's thread.

        Several may run at once. Raises what ONNX Runtime raises.
        """
        return self._with_options(partial(self._sessions.run, feed, k))

    def terminate(self) -> None:
        """Ask every run under way to end at the next node of its graph; returns at once."""
        for options in tuple(self._active):
            options.terminate = True

    async def warm_up(self, max_batch_size: int) -> None:
        """Fill the buckets for batches of up to `max_batch_size` rows, and run the largest batch once.

        A model with scores in 8 bits is measured with and without them, and uses them where they are quicker. The ways
        of rows with masks are measured too. Raises ModelError if a run fails.
        """
        buckets, k, item = self._sessions.buckets, self.model.default_k, self.model.some_item
        shapes = () if buckets is None else buckets.shapes(max_batch_size, _WARMED_HISTORY)
        with as_model_error(self._sessions.path):
            for bucket in shapes:
                await self.run([Query((item,) * bucket.history, bucket.k)] * bucket.rows)
            await self._threads.call(lambda _: self._sessions.choose_coarse_rows(max_batch_size))
            await self._threads.call(lambda _: self._measure_ways(max_batch_size))
            await self.run([Query((item,), k)] * max_batch_size)

    def close(self) -> bool:
        """End the threads and free the sessions; False if a thread is stuck in a run, which keeps its memory."""
        self.terminate()
        ended = self._threads.close()
        if ended:
            # Here, and not when the last reference goes: freeing a large model takes milliseconds of some thread's.
            self._sessions.close()
            release_memory()
        return ended

    def _measure_ways(self, max_batch_size: int) -> None:
        """Measure the ways of rows with masks, on the CPU; blocks."""
        if self._has_ways and self.provider == CPU:
            self.mask_costs = NAMING
            self.mask_costs = measured(
                lambda queries: outcomes_of(partial(self.rank, queries)),
                self.model,
                self.contract.items,
                self._sessions.block,
                max_batch_size,
            )
            self._shrink()

    def _shrink(self) -> None:
        """Give back the memory that runs up to now have taken on the CPU; blocks."""
        k, options = self.model.default_k, quiet_options()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._sessions.run(self.contract.pack([Query((self.model.some_item,), k)]), k, options, general=True)
        release_memory()

    def _rank(
        self,
        queries: Sequence[Query],
        begun: Callable[[], None],
        *,
        general: bool = False,
        padding: int | None = None,
    ) -> list[Ranking]:
        def rank(options: onnxruntime.RunOptions) -> list[Ranking]:
            batch = Batch(self._sessions, options, begun, self.mask_costs, general, padding)
            return batch.rank(queries) if self.contract.batched else batch.rank_one_by_one(queries)

        return self._attempt(queries, rank)

    def _attempt(self, queries: Sequence[Query], run: Callable[[onnxruntime.RunOptions], R]) -> R:
        """Run for these queries, with options that `terminate` knows of."""
        try:
            return self._with_options(run)
        except runtime_errors.InvalidArgument as error:
            # Only the model knows its catalogue if nothing says how large it is: there a Gather finds the unknown id.
            if len(queries) != 1 or "out of data bounds" not in str(error):
                raise
            (guilty,) = queries
            if self.model.items is None and guilty.history:
                refused = Violation("item_ids", f"an id is not in the catalogue; the largest is {max(guilty.history)}")
            elif guilty.features:
                refused = Violation("features", f"model {self.model.label} has no row for one of their values")
            else:
                raise
            raise InvalidRequestError(refused) from error

    def _with_options(self, run: Callable[[onnxruntime.RunOptions], R]) -> R:
        options = quiet_options()
        self._active.add(options)
        try:
            return run(options)
        finally:
            self._active.discard(options)


@dataclass(frozen=True, slots=True)
class PackedRun:
    """A staged run with a packed feed; `result` unpacks its outputs."""

    job: Job[Outputs]
    contract: Contract
    queries: Sequence[Query]

    @property
    def began(self) -> float | None:
        """When it began, as `time.monotonic` gives it; None before."""
        return self.job.began

    @property
    def ended(self) -> float | None:
        """When its thread ended it; None before."""
        return self.job.ended

    def take_back(self) -> bool:
        """See to it that it never begins; False if it has begun."""
        return self.job.take_back()

    async def result(self) -> Sequence[Ranking]:
        """The rankings; raises what `OnnxEngine.run` raises."""
        return self.contract.unpack(await self.job.result(), self.queries)


def open_engine(settings: EngineSettings, path: Path, describe: Describe, threads: int | None = None) -> OnnxEngine:
    """Load a model file as the settings say, with `threads` CPUs a run instead of their number; blocks.

    Raises ModelError and ProviderError as `open_sessions` does.
    """
    plan = SessionPlan(
        threads=settings.threads if threads is None else threads,
        spinning=settings.thread_spinning,
        cuda=CudaOptions(
            device_id=settings.cuda_device_id,
            memory_limit_mb=settings.cuda_memory_limit_mb,
            arena=settings.cuda_arena,
            graph=settings.cuda_graph,
            tf32=settings.cuda_tf32,
        ),
        coreml=CoreMLOptions(settings.coreml_compute_units, settings.coreml_model_format),
    )
    return OnnxEngine(open_sessions(path, describe, plan, device=settings.device, slots=settings.engine_slots))
