"""The engine: one ONNX Runtime session, its execution provider, and the threads it runs on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from recommender.batching.cost import Observation
from recommender.domain import Query, Ranking
from recommender.engine.buckets import Buckets
from recommender.engine.contract import Contract, Feed, Outputs, Port
from recommender.engine.machine import available_cpus, available_memory, memory_growth, resident_memory
from recommender.engine.onnx_file import OnnxFile, read_onnx_file
from recommender.engine.provider import (
    CONTROL_FLOW,
    CPU,
    CUDA,
    CoreMLOptions,
    CudaOptions,
    SessionPlan,
    open_for_device,
    open_session,
)
from recommender.errors import InvalidRequestError, ModelError, Violation
from recommender.models.artifact import Artifact
from recommender.models.checks import hold_to_card, hold_to_limits, measure
from recommender.models.description import describe
from recommender.settings.engine import Device
from recommender.settings.settings import Settings
from recommender.threads import Job, Threads

_QUIETEST = 4  # ONNX Runtime's own log says nothing that the errors it raises do not say.
_COPIES_WHILE_LOADING = 2
"""Times that a model's constants stand in memory at worst while it loads: measured, inline and external."""
_WARMED_HISTORY = 512
"""Items of the longest history whose bucket is filled before the first request; longer ones are when they come."""
_LARGE = 32
"""Rows of a run that is worth a handover: see `Threads.call`."""
_QUICK_SECONDS = 0.001
"""A run of `_LARGE` rows that one CPU does within this is not divided: to wake another costs what it saves."""
_TRIED_LENGTH = 32
_TRIES = 5
_TELLING_BYTES = 1 << 25
"""Constants below this disappear in what a session takes for itself."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model costs, in bytes: its constants, what loading took, and what the largest batch added.

    `loaded` and `working` are what the process grew by; None where the system does not tell.
    """

    constants: int
    loaded: int | None = None
    working: int | None = None

    @property
    def copies(self) -> float | None:
        """How many times the constants stand in memory; None where they are too small to tell by the growth.

        ONNX Runtime keeps the constant operand of a product twice: as it was, and packed for its kernel.
        """
        return None if self.loaded is None or self.constants < _TELLING_BYTES else self.loaded / self.constants


class OnnxEngine:
    """Runs one model. Runs happen on the engine's own threads, `slots` at once.

    The event loop waits for none of them, but for a millisecond at most until one of many rows has begun.
    `threads` is how many CPUs one run uses; 0 shares the CPUs of this process out among the slots, and takes one where
    the model is so quick that more bring nothing.
    `provider` is what runs the model, `fallback_reason` why that is not what `auto` prefers.
    `bucketed` runs batches in a few fixed shapes, `captures` tells whether such runs are captured as graphs;
    by default CUDA does the first. `free_memory` tells how many bytes the process may still take, or None
    where nobody knows.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: Device = "auto",
        threads: int = 0,
        spinning: bool = False,
        slots: int = 1,
        cuda: CudaOptions = CudaOptions(),  # noqa: B008 (frozen)
        coreml: CoreMLOptions = CoreMLOptions(),  # noqa: B008 (frozen)
        bucketed: bool | None = None,
        free_memory: Callable[[], int | None] = available_memory,
    ) -> None:
        self._artifact = artifact
        onnx_file = read_onnx_file(artifact.path)
        _refuse_too_large(artifact.path, onnx_file, free_memory())
        onnx_file.check_tables()
        self.threads = threads or max(available_cpus() // slots, 1)
        if onnx_file.operators & CONTROL_FLOW:
            cuda = replace(cuda, graph=False)
        plan = SessionPlan(self.threads, spinning, cuda, coreml, onnx_file.table_look_ups)
        opened = open_for_device(artifact.path, device, plan)
        self.memory = Memory(onnx_file.constant_bytes, opened.loaded)
        self.provider = opened.provider
        self.fallback_reason = opened.fallback_reason
        self._session = opened.session
        self.contract = Contract.of(_ports(self._session.get_inputs()), _ports(self._session.get_outputs()))
        self.model = describe(
            artifact,
            self.contract,
            self._session.get_modelmeta().custom_metadata_map,
            self._session.get_outputs()[0].shape[-1],
        )
        if self.model.items is None and self.provider != CPU:
            raise ModelError(
                f"{artifact.path} does not say how many items it has, and {self.provider} reads any id as some "
                "item: give it a card or the metadata recommender.items, or set RECOMMENDER_DEVICE=cpu"
            )
        on_cuda = self.provider == CUDA
        self.captures = on_cuda and cuda.graph
        self._buckets: Buckets | None = None
        if self.contract.batched and (on_cuda if bucketed is None else bucketed):
            self._buckets = Buckets(
                self._session,
                self.contract,
                self.model,
                device="cuda" if on_cuda else "cpu",
                device_id=cuda.device_id if on_cuda else 0,
                capture=self.captures,
            )
        self._plan = plan
        self._small = self.provider == CPU and onnx_file.small
        self._may_stop_dividing = self._small and not threads and self.contract.batched and self._buckets is None
        self._quick: onnxruntime.InferenceSession | None = None
        self._outputs = ["recommendations", "scores"] if self.contract.batched else ["recommendations"]
        self._threads = Threads(slots)
        self._active: set[onnxruntime.RunOptions] = set()

    def _open_unrestricted(self) -> onnxruntime.InferenceSession | None:
        """A session for runs in which nobody excludes items or names candidates; None where a model takes neither."""
        pinned = self.contract.unrestricted_widths({port.name: port.shape for port in self._session.get_inputs()})
        if not self._small or not pinned:
            return None
        opened = open_session(self._artifact.path, CPU, replace(self._plan, pinned=pinned))
        if self.memory.loaded is not None and opened.loaded is not None:
            self.memory = replace(self.memory, loaded=self.memory.loaded + opened.loaded)
        return opened.session

    def _divide_no_quick_runs(self) -> None:
        """Take one CPU a run where that is quick enough: to wake another would cost what it saves."""
        if self.threads == 1 or not self._may_stop_dividing or not self._is_quick(self._session):
            return
        plan = replace(self._plan, threads=1)
        session = open_session(self._artifact.path, CPU, plan).session
        if self._is_quick(session):
            self.threads, self._plan, self._session = 1, plan, session

    def _is_quick(self, session: onnxruntime.InferenceSession) -> bool:
        """Whether a session ranks for a full house within `_QUICK_SECONDS`, in the best of a few runs."""
        items = min(self.model.longest_history or _TRIED_LENGTH, _TRIED_LENGTH)
        feed = self.contract.pack([Query((0,) * items, self.model.default_k)] * _LARGE)
        best = math.inf
        for _ in range(_TRIES):
            started = time.perf_counter()
            with self._options() as options:
                session.run(self._outputs, feed, options)
            best = min(best, time.perf_counter() - started)
        return best <= _QUICK_SECONDS

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for every query, in their order, on the engine's own thread.

        Holds up the event loop until a run of `_LARGE` rows or more has begun, for a millisecond at most.
        Raises InvalidRequestError if the only query holds an id that the model does not have, and what ONNX
        Runtime raises if the run failed. A cancelled call does not end the run; `terminate` does.
        """
        return await self._threads.call(partial(self._rank, queries), at_once=len(queries) >= _LARGE)

    def stage(self, queries: Sequence[Query]) -> Job[list[Ranking]] | PackedRun:
        """Have a run ready for the thread that is free next; it gives and raises what `run` does.

        The event loop packs and unpacks what takes next to no time: a thread that ends one run and begins another would
        need the interpreter for it, which it gets when the loop lets go of it.
        """
        if not self.contract.light(queries):
            return self._threads.put(partial(self._rank, queries))
        feed, k = self.contract.pack(queries), max(query.k for query in queries)
        job = self._threads.put(lambda _: self._attempt(queries, partial(self._run_feed, feed, k)))
        return PackedRun(job, self.contract, queries)

    def terminate(self) -> None:
        """Ask every run under way to end at the next node of its graph; returns at once."""
        for options in tuple(self._active):
            options.terminate = True

    async def warm_up(self, max_batch_size: int, proven: Sequence[Observation] = ()) -> Sequence[Observation]:
        """Hold the model to its card, its golden answers and its limits, and measure batches of it.

        The largest has `max_batch_size` rows; afterwards `memory` tells what that took. What was `proven` in another
        process is returned instead of measured, after one run of that size. Raises ModelError if an answer differs, a
        limit is not kept, or a run fails.
        """
        try:
            await self._threads.call(lambda _: self._divide_no_quick_runs())
            unrestricted = await self._threads.call(lambda _: self._open_unrestricted())
            before = resident_memory()
            await hold_to_card(self.run, self._artifact)
            self._quick = unrestricted
            if self._quick is not None:
                await hold_to_card(self.run, self._artifact)
            await hold_to_limits(self.run, self._artifact.path, self.model)
            if self._buckets is not None:
                for bucket in self._buckets.shapes(max_batch_size, _WARMED_HISTORY):
                    await self.run([Query((0,) * bucket.history, bucket.k)] * bucket.rows)
            observations = proven or await measure(self.run, self.model, max_batch_size)
            if proven:
                await self.run([Query((0,), self.model.default_k)] * max_batch_size)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{self._artifact.path} loads but does not run: {error}") from error
        self.memory = replace(self.memory, working=memory_growth(before))
        return observations

    def close(self) -> bool:
        """End the threads and free the session; False if a thread is stuck in a run, which keeps its memory."""
        self.terminate()
        ended = self._threads.close()
        if ended and hasattr(self, "_session"):
            # Here, and not when the last reference goes: freeing a large model takes milliseconds of some thread's.
            self._buckets = None
            del self._session
        return ended

    def _rank(self, queries: Sequence[Query], begun: Callable[[], None]) -> list[Ranking]:
        if self.contract.batched:
            return self._attempt(queries, partial(self._rank_together, queries, begun))
        begun()
        return self._attempt(queries, partial(self._rank_one_by_one, queries))

    def _attempt(self, queries: Sequence[Query], run: Callable[[onnxruntime.RunOptions], R]) -> R:
        """What a run for these queries gives, by options under which it can be ended."""
        try:
            with self._options() as options:
                return run(options)
        except runtime_errors.InvalidArgument as error:
            # Only the model knows its catalogue where no card tells it: there a Gather finds the stranger.
            if self.model.items is None and len(queries) == 1 and "out of data bounds" in str(error):
                raise InvalidRequestError(
                    Violation("item_ids", f"an id is not in the catalogue; the largest is {max(queries[0].history)}")
                ) from error
            raise

    @contextlib.contextmanager
    def _options(self) -> Iterator[onnxruntime.RunOptions]:
        """Options for a run under way, by which `terminate` can end it."""
        options = onnxruntime.RunOptions()
        options.log_severity_level = _QUIETEST
        self._active.add(options)
        try:
            yield options
        finally:
            self._active.discard(options)

    def _rank_together(
        self, queries: Sequence[Query], begun: Callable[[], None], options: onnxruntime.RunOptions
    ) -> list[Ranking]:
        rankings: dict[int, Ranking] = {}
        for places in self.contract.runs(queries):
            sharing = [queries[place] for place in places]
            feed = self.contract.pack(sharing)
            begun()
            outputs = self._run_feed(feed, max(query.k for query in sharing), options)
            rankings.update(zip(places, self.contract.unpack(outputs, sharing), strict=True))
        return [rankings[place] for place in range(len(queries))]

    def _rank_one_by_one(self, queries: Sequence[Query], options: onnxruntime.RunOptions) -> list[Ranking]:
        return [
            self.contract.unpack_alone(
                self._session.run(self._outputs, self.contract.pack_alone(query), options), query
            )
            for query in queries
        ]

    def _run_feed(self, feed: Feed, k: int, options: onnxruntime.RunOptions) -> Outputs:
        if self._buckets is not None:
            if self._buckets.fits(feed):
                return self._buckets.run(feed, k, options)
            self._buckets.keep_out(options)
        session = self._quick if self._quick is not None and self.contract.unrestricted(feed) else self._session
        outputs: Outputs = session.run(self._outputs, feed, options)
        return outputs


@dataclass(frozen=True, slots=True)
class PackedRun:
    """A staged run whose feed is packed, and whose outputs are unpacked by who wants the result."""

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


def open_engine(settings: Settings, artifact: Artifact, threads: int | None = None) -> OnnxEngine:
    """The engine for a model as the settings want it, `threads` instead of their number where it is given."""
    return OnnxEngine(
        artifact,
        device=settings.engine.device,
        threads=settings.engine.threads if threads is None else threads,
        spinning=settings.engine.thread_spinning,
        slots=settings.engine.engine_slots,
        cuda=CudaOptions(
            device_id=settings.engine.cuda_device_id,
            memory_limit_mb=settings.engine.cuda_memory_limit_mb,
            arena=settings.engine.cuda_arena,
            graph=settings.engine.cuda_graph,
            tf32=settings.engine.cuda_tf32,
        ),
        coreml=CoreMLOptions(settings.engine.coreml_compute_units, settings.engine.coreml_model_format),
    )


def _refuse_too_large(path: Path, onnx_file: OnnxFile, free: int | None) -> None:
    needed = _COPIES_WHILE_LOADING * onnx_file.constant_bytes
    if free is not None and needed > free:
        raise ModelError(
            f"{path} does not fit into memory: its constants take {_megabytes(onnx_file.constant_bytes)}, loading "
            f"takes about {_COPIES_WHILE_LOADING} times that, and {_megabytes(free)} are free here (cgroup limits "
            "included); give the process more memory, or serve a smaller model"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _ports(nodes: Sequence[onnxruntime.NodeArg]) -> dict[str, Port]:
    return {node.name: Port(node.type, len(node.shape)) for node in nodes}
