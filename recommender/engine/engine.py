"""The engine: runs batches through one model's sessions, on its own threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from recommender.batching.faults import whole
from recommender.domain import Query, Ranking
from recommender.engine.beside import Vectors, ranked_beside, read_of
from recommender.engine.contract import QUERY, Contract, Feed, Outputs
from recommender.engine.masked.bounds import BOUNDED, BOUNDS
from recommender.engine.masked.named import outcomes_of
from recommender.engine.masked.ranking import MaskedRanking, Walked, kept_alone
from recommender.engine.provider import CoreMLOptions, CudaOptions, SessionPlan
from recommender.engine.rules import ranked_by_rules
from recommender.engine.sessions import Describe, Sessions, as_model_error, open_sessions, quiet_options
from recommender.errors import EngineError, InvalidRequestError, Violation
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
    `captures` whether runs are captured as CUDA graphs.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.model = sessions.model
        self.contract = sessions.contract
        self.provider = sessions.provider
        self.fallback_reason = sessions.fallback_reason
        self.threads = sessions.plan.threads
        self.memory = sessions.memory
        self.captures = sessions.captures
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
        feed, k = self.contract.pack(queries), max(query.k for query in queries)
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

        A model with scores in 8 bits is measured with and without them, and uses them where they are quicker. Raises
        ModelError if a run fails.
        """
        buckets, k, item = self._sessions.buckets, self.model.default_k, self.model.some_item
        shapes = () if buckets is None else buckets.shapes(max_batch_size, _WARMED_HISTORY)
        with as_model_error(self._sessions.path):
            for bucket in shapes:
                await self.run([Query((item,) * bucket.history, bucket.k)] * bucket.rows)
            await self.run([Query((item,), k)] * max_batch_size)
            await self._threads.call(lambda _: self._sessions.choose_coarse_rows(max_batch_size))

    def close(self) -> bool:
        """End the threads and free the sessions; False if a thread is stuck in a run, which keeps its memory."""
        self.terminate()
        ended = self._threads.close()
        if ended:
            # Here, and not when the last reference goes: freeing a large model takes milliseconds of some thread's.
            self._sessions.close()
        return ended

    def _rank(
        self,
        queries: Sequence[Query],
        begun: Callable[[], None],
        *,
        general: bool = False,
        padding: int | None = None,
    ) -> list[Ranking]:
        if self.contract.batched:
            return self._attempt(
                queries, partial(self._rank_together, queries, begun, general=general, padding=padding)
            )
        begun()
        return self._attempt(queries, partial(self._rank_one_by_one, queries))

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

    def _rank_together(
        self,
        queries: Sequence[Query],
        begun: Callable[[], None],
        options: onnxruntime.RunOptions,
        *,
        general: bool,
        padding: int | None,
        vectors: Vectors | None = None,
    ) -> list[Ranking]:
        apart = [query.masks or query.beside or query.rules for query in queries]
        if any(apart):
            rank = partial(self._rank_together, begun=begun, options=options, general=general, padding=padding)
            if any(query.rules for query in queries):
                ruled = ranked_by_rules(queries, lambda each: outcomes_of(partial(rank, each)), self.contract.items)
                return whole(ruled)
            if any(query.beside for query in queries):
                return self._rank_beside(queries, rank, options, padding)
            rank = partial(rank, vectors=vectors)
            run = partial(self._sessions.run, options=options, general=general)
            walk = partial(self._walk, begun, options, general=general, padding=padding, vectors=vectors)
            block, ranked = self._sessions.block, lambda unmasked: outcomes_of(partial(rank, unmasked))
            masked = MaskedRanking(self.contract, self.model, ranked, run, padding, walk=walk, block=block)
            return whole(masked.outcomes(queries))
        runs = self.contract.runs(queries)
        if len(runs) == 1:
            return self._rank_in_one_run(queries, begun, options, general=general, padding=padding, vectors=vectors)
        outcomes: dict[int, Ranking | EngineError] = {}
        for places in runs:
            sharing = [queries[place] for place in places]
            one_run = partial(
                self._rank_in_one_run, sharing, begun, options, general=general, padding=padding, vectors=vectors
            )
            outcomes.update(zip(places, outcomes_of(one_run), strict=True))
        return whole([outcomes[place] for place in range(len(queries))])

    def _rank_in_one_run(
        self,
        queries: Sequence[Query],
        begun: Callable[[], None],
        options: onnxruntime.RunOptions,
        *,
        general: bool,
        padding: int | None,
        vectors: Vectors | None,
    ) -> list[Ranking]:
        feed = self.contract.pack(queries, padding)
        begun()
        k = max([query.k for query in queries])
        run = partial(self._sessions.run, feed, k, options, general=general)
        return self.contract.unpack(_noting(vectors, queries, run), queries)

    def _walk(
        self,
        begun: Callable[[], None],
        options: onnxruntime.RunOptions,
        queries: Sequence[Query],
        bounded: Sequence[Query],
        *,
        general: bool,
        padding: int | None,
        vectors: Vectors | None,
    ) -> Walked:
        """Rank for `queries` in one run that gives the bounds of blocks for the rows in `bounded`."""
        rows, k = [*queries, *bounded], max([query.k for query in queries], default=1)
        feed = self.contract.pack(rows, padding)
        feed["k"], feed[BOUNDED] = np.array([min(k, self.contract.items)]), np.arange(len(queries), len(rows))
        begun()
        run = partial(self._sessions.run, feed, k, options, general=general)
        ids, scores, bounds = _noting(vectors, rows, run, BOUNDS)
        own = [ids[: len(queries)], scores[: len(queries)]]
        outcomes = outcomes_of(partial(self.contract.unpack, own, queries)) if queries else ()
        return Walked(outcomes, bounds.astype(np.float32, copy=False))

    def _rank_beside(
        self,
        queries: Sequence[Query],
        rank: Callable[..., list[Ranking]],
        options: onnxruntime.RunOptions,
        padding: int | None,
    ) -> list[Ranking]:
        """Rank the catalogue by `rank`, and the items beside it by the vectors of the runs."""
        vectors: Vectors = {}
        alone = [query._replace(beside=None) for query in queries]
        outcomes = outcomes_of(partial(rank, alone, vectors=vectors))
        # Rows of which nothing is ranked, or few items by their names, have no vector yet.
        left = [query for query in alone if read_of(query) not in vectors]
        if left:
            bare = [query._replace(k=1, excluded=(), candidates=None, masks=()) for query in left]
            found = self._sessions.encode(self.contract.pack(bare, padding), options)
            vectors.update(zip(map(read_of, left), found, strict=True))
        return whole(ranked_beside(queries, outcomes, vectors))

    def _rank_one_by_one(self, queries: Sequence[Query], options: onnxruntime.RunOptions) -> list[Ranking]:
        outcomes: list[Ranking | EngineError] = []
        most = self.model.max_k
        for query in queries:
            wanted = query._replace(k=most) if query.masks else query
            outputs = self._sessions.run(self.contract.pack_alone(query), query.k, options)
            (outcome,) = outcomes_of(partial(self.contract.unpack_alone, outputs, [wanted]))
            outcomes.append(
                kept_alone(outcome, query, most) if query.masks and isinstance(outcome, Ranking) else outcome
            )
        return whole(outcomes)


def _noting(vectors: Vectors | None, queries: Sequence[Query], run: Callable[..., Outputs], *more: str) -> Outputs:
    """Run for the usual outputs and for `more`, and note the rows' vectors if they are wanted."""
    if vectors is None:
        return run(more=more)
    *outputs, found = run(more=(*more, QUERY))
    vectors.update(zip(map(read_of, queries), found.astype(np.float32, copy=False), strict=True))
    return outputs


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
