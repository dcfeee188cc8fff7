"""The ONNX Runtime sessions of one model: opened, tuned to the model's size, and ready for every feed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from recommender.batching.faults import FaultyRowsError
from recommender.domain import Model, Query
from recommender.engine.buckets import Buckets
from recommender.engine.coarse import (
    COARSE_ROWS,
    EVERY_BATCH,
    NO_BATCH,
    Span,
    quickest,
    quickest_span,
    takes_coarse_rows,
)
from recommender.engine.contract import QUERY, Contract, Feed, Outputs, Port
from recommender.engine.cpus import several_pay
from recommender.engine.features import faults_of
from recommender.engine.machine import Memory, available_cpus, available_memory
from recommender.engine.masked.bounds import block_of
from recommender.engine.onnx_file import OnnxFile, read_onnx_file
from recommender.engine.provider import CONTROL_FLOW, CPU, CUDA, SessionPlan, open_for_device, open_session
from recommender.errors import EngineError, ModelError
from recommender.settings.engine import Device

_QUIETEST = 4  # ONNX Runtime's own log repeats the errors that it raises.
_OUT_OF_MEMORY = "Failed to allocate memory"
"""What ONNX Runtime says of an allocation that failed."""
_COPIES_WHILE_LOADING = 2
"""Copies of a model's constants that loading needs at worst: measured, inline and external."""
_TRIED_ROWS = 32
_TRIED_LENGTH = 32

_FREE = {
    "user_history": ("batch", "history"),
    "history_length": ("batch",),
    "excluded": ("number of pairs",),
    "candidates": ("batch", "number of candidates"),
    "candidates_length": ("batch",),
    "history_types": ("batch", "history"),
    "history_times": ("batch", "history"),
}
"""Dimensions that each run chooses, by input."""

Describe: TypeAlias = Callable[[Contract, Mapping[str, str], int | str | None], Model]
"""Tell a model's limits from its contract, its metadata and the last dimension of its recommendations.

Raises ModelError if they contradict each other.
"""


@dataclass(slots=True, kw_only=True)
class Sessions:
    """The sessions of one model on one provider, and facts about it.

    `general` takes every feed. `plain` is quicker and takes feeds without exclusions and candidates; None if the model
    is not small. `buckets` runs such feeds in a few fixed shapes; None without buckets. `fallback_reason` says why
    `provider` is not the first choice of `auto`. `slots` runs may go at once. `coarse_rows` says which batches start
    from scores in 8 bits; None if the model has none. `block` is the number of items of a block with a bound; None if
    bounds are not used.
    """

    path: Path
    contract: Contract
    model: Model
    provider: str
    fallback_reason: str | None
    plan: SessionPlan
    slots: int
    memory: Memory
    general: onnxruntime.InferenceSession | None
    plain: onnxruntime.InferenceSession | None
    buckets: Buckets | None
    coarse_rows: Span | None = None
    block: int | None = None

    @property
    def captures(self) -> bool:
        """Whether CUDA captures runs as graphs."""
        return self.provider == CUDA and self.plan.cuda.graph

    def run(
        self,
        feed: Feed,
        k: int,
        options: onnxruntime.RunOptions,
        *,
        general: bool = False,
        more: Sequence[str] = (),
    ) -> Outputs:
        """Run a feed whose rows want `k` recommendations at most; blocks. `general` keeps it off the quicker session.

        The outputs end with those named in `more`, which the model must have; such a run goes without a bucket.
        Raises what ONNX Runtime raises, and EngineError after `close`.
        """
        if self.buckets is not None:
            if not more and k <= self.model.max_k and self.buckets.fits(feed):
                return self.buckets.run(feed, k, options)
            self.buckets.keep_out(options)
        plain = self.plain
        session = plain if plain is not None and not general and self.contract.unrestricted(feed) else self.general
        if session is None:
            raise EngineError("the engine is closed")
        if self.coarse_rows is not None:
            feed = {**feed, COARSE_ROWS: self.coarse_rows}
        outputs: Outputs = session.run([*_outputs(self.contract), *more], feed, options)
        return outputs

    def encode(self, feed: Feed, options: onnxruntime.RunOptions) -> npt.NDArray[np.float32]:
        """The output `query` of a feed, without ranking anything; blocks. Raises as `run` does."""
        if self.general is None:
            raise EngineError("the engine is closed")
        if self.buckets is not None:
            self.buckets.keep_out(options)
        options.only_execute_path_to_fetches = True
        try:
            (vectors,) = self.general.run([QUERY], feed, options)
        finally:
            options.only_execute_path_to_fetches = False
        return np.asarray(vectors, np.float32)

    def choose_coarse_rows(self, max_batch_size: int) -> None:
        """Measure which batches are quicker from scores in 8 bits, and let these start from them; blocks.

        A no-op for a model without such scores, and on other providers than the CPU, where they gain nothing.
        Raises what ONNX Runtime raises.
        """
        if self.coarse_rows is None or self.provider != CPU:
            return
        known, model = self.model.readable or 1, self.model
        # Items from all over the catalogue: a batch of one user often would be as hard or as easy as that user.
        items = [number * known // max_batch_size for number in range(max_batch_size)]
        queries = [Query((model.some_item if item == model.padding_id else item,), model.default_k) for item in items]

        def seconds(rows: int, spans: Sequence[Span]) -> Sequence[float]:
            feed = self.contract.pack(queries[:rows])

            def run(span: Span) -> None:
                self.coarse_rows = span
                self.run(feed, model.default_k, quiet_options())

            return quickest(run, spans)

        self.coarse_rows = quickest_span(seconds, max_batch_size)

    def close(self) -> None:
        """Free the sessions; blocks for milliseconds if the model is large. A no-op after the first call."""
        self.general = self.plain = self.buckets = None


def open_sessions(
    path: Path,
    describe: Describe,
    plan: SessionPlan,
    *,
    device: Device,
    slots: int = 1,
    bucketed: bool | None = None,
    free_memory: Callable[[], int | None] = available_memory,
) -> Sessions:
    """Load a model file; blocks.

    A plan of 0 threads shares the CPUs of this process out among the slots, and takes one CPU a run if the model is
    so quick that more gain nothing. `bucketed` is whether runs go in buckets; by default CUDA's do. `free_memory`
    gives the bytes that the process may still take, None if unknown.

    Raises ModelError if the file is damaged, does not fit the contract or the free memory, or does not run.
    Raises ProviderError if the device was named and is not to be had.
    """
    file = read_onnx_file(path)
    _refuse_too_large(path, file, free_memory())
    file.check_tables()
    shared = not plan.threads
    plan = _fitted(plan, file, slots)
    opened = open_for_device(path, device, plan)
    session, loaded = opened.session, opened.loaded
    contract = Contract.of(_ports(session.get_inputs()), _ports(session.get_outputs()))
    width = session.get_outputs()[0].shape[-1]
    _refuse_fixed(path, {port.name: port.shape for port in session.get_inputs()}, contract.others)
    model = describe(contract, session.get_modelmeta().custom_metadata_map, width)
    contract = contract.within(model)
    others = {port.name: (port.type, port.shape) for port in session.get_inputs() if port.name in contract.others}
    faults = list(faults_of(model.features, others))
    if faults:
        raise ModelError(f"{path} does not fit the contract: {'; '.join(faults)}")
    if model.items is None and opened.provider != CPU:
        raise ModelError(
            f"{path} does not say how many items it has, and {opened.provider} reads any id as some "
            "item: give it a card or the metadata recommender.items, or set RECOMMENDER_DEVICE=cpu"
        )
    plain = buckets = coarse_rows = None
    if takes_coarse_rows(session):
        coarse_rows = EVERY_BATCH if opened.provider == CPU else NO_BATCH
    if contract.batched and (opened.provider == CUDA if bucketed is None else bucketed):
        buckets = _open_buckets(session, contract, model, opened.provider, plan, coarse_rows)
    elif opened.provider == CPU and file.small:
        if shared and contract.batched and plan.threads > 1:
            session, plan = _undivided_unless_several_pay(path, session, contract, model, plan)
        pinned = contract.unrestricted_widths({port.name: port.shape for port in session.get_inputs()})
        if pinned:
            also = open_session(path, CPU, replace(plan, pinned=pinned))
            plain = also.session
            loaded = None if loaded is None or also.loaded is None else loaded + also.loaded
    return Sessions(
        path=path,
        contract=contract,
        model=model,
        provider=opened.provider,
        fallback_reason=opened.fallback_reason,
        plan=plan,
        slots=slots,
        memory=Memory(file.constant_bytes, loaded),
        general=session,
        plain=plain,
        buckets=buckets,
        coarse_rows=coarse_rows,
        # Elsewhere a run in a bucket is quicker than what bounds would spare.
        block=block_of(session) if opened.provider == CPU and buckets is None else None,
    )


@contextlib.contextmanager
def as_model_error(path: Path) -> Iterator[None]:
    """Turn the error of a run into a ModelError that names the model file."""
    try:
        yield
    except ModelError:
        raise
    except FaultyRowsError as error:
        raise ModelError(f"{path} does not keep its limits: {error}; train or export the model again") from error
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY in said:
            said += "; it takes more memory than there is: run smaller batches, or give it more"
        raise ModelError(f"{path} loads but does not run: {said}") from error


def quiet_options() -> onnxruntime.RunOptions:
    """Options of one run, which logs nothing."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = _QUIETEST
    return options


def _fitted(plan: SessionPlan, file: OnnxFile, slots: int) -> SessionPlan:
    """The plan for this file: a number of threads, no CUDA graphs if it branches, no memory plans if it is large."""
    threads = plan.threads or max(available_cpus() // slots, 1)
    cuda = replace(plan.cuda, graph=False) if file.operators & CONTROL_FLOW else plan.cuda
    return replace(plan, threads=threads, cuda=cuda, table_look_ups=file.table_look_ups, memory_patterns=file.small)


def _open_buckets(
    session: onnxruntime.InferenceSession,
    contract: Contract,
    model: Model,
    provider: str,
    plan: SessionPlan,
    coarse_rows: Span | None,
) -> Buckets:
    on_cuda = provider == CUDA
    return Buckets(
        session,
        contract,
        model,
        device="cuda" if on_cuda else "cpu",
        device_id=plan.cuda.device_id if on_cuda else 0,
        capture=on_cuda and plan.cuda.graph,
        fixed={} if coarse_rows is None else {COARSE_ROWS: coarse_rows},
    )


def _undivided_unless_several_pay(
    path: Path, session: onnxruntime.InferenceSession, contract: Contract, model: Model, plan: SessionPlan
) -> tuple[onnxruntime.InferenceSession, SessionPlan]:
    """A session on one CPU with its plan, unless several pay; else the session that there is.

    Raises ModelError if a run fails.
    """
    items = min(model.longest_history or _TRIED_LENGTH, _TRIED_LENGTH)
    feed = contract.pack([Query((model.some_item,) * items, model.default_k)] * _TRIED_ROWS)
    alone = replace(plan, threads=1)
    undivided = open_session(path, CPU, alone).session
    outputs = _outputs(contract)
    with as_model_error(path):
        several = several_pay(
            lambda: undivided.run(outputs, feed, quiet_options()),
            lambda: session.run(outputs, feed, quiet_options()),
            _TRIED_ROWS,
        )
    return (session, plan) if several else (undivided, alone)


def _outputs(contract: Contract) -> list[str]:
    """The outputs that serving asks for."""
    return ["recommendations", "scores"] if contract.batched else ["recommendations"]


def _ports(nodes: Sequence[onnxruntime.NodeArg]) -> dict[str, Port]:
    return {node.name: Port(node.type, len(node.shape)) for node in nodes}


def _refuse_fixed(path: Path, shapes: Mapping[str, Sequence[int | str | None]], features: Container[str]) -> None:
    """Raise ModelError if a dimension of an input that every run chooses is a number."""
    free = {name: ("batch",) if name in features else _FREE.get(name, ()) for name in shapes}
    fixed = [
        f"{name} has a fixed {what} of {shape[axis]}"
        for name, shape in shapes.items()
        for axis, what in enumerate(free[name][-len(shape) :])
        if isinstance(shape[axis], int)
    ]
    if fixed:
        raise ModelError(
            f"{path} takes inputs of one size only: {'; '.join(fixed)}. Export it with free dimensions, as "
            'torch.onnx.export(…, dynamo=True, dynamic_shapes=({0: "batch", 1: "history"}, {0: "batch"}))'
        )


def _refuse_too_large(path: Path, file: OnnxFile, free: int | None) -> None:
    needed = _COPIES_WHILE_LOADING * file.constant_bytes
    if free is not None and needed > free:
        raise ModelError(
            f"{path} does not fit into memory: its constants take {_megabytes(file.constant_bytes)}, loading "
            f"takes about {_COPIES_WHILE_LOADING} times that, and {_megabytes(free)} are free here (cgroup limits "
            "included); give the process more memory, or serve a smaller model"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
