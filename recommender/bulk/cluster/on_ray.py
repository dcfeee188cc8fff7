"""Score on a Ray cluster: Ray Data hands shards to actors, which read and write the files themselves.

So no row passes through Ray's object store, and an actor keeps the speed of a job on its CPUs.
"""

from __future__ import annotations

import pickle
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from recommender.bulk.answers import Counts
from recommender.bulk.cluster.shards import cut_into_shards
from recommender.bulk.cluster.worker import Done, Order, Worker
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.manifest import differences, resume
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import JobOptions, Progress, Summary
from recommender.bulk.model import pinned
from recommender.bulk.pipeline import STOPPED, StoppedError
from recommender.errors import StartError
from recommender.settings.settings import Settings


class ShardActor:
    """A `Worker` as Ray Data calls it: numbers of shards in, their pickled outcomes out."""

    def __init__(self, order: Order) -> None:
        self._worker = Worker(order)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score shards. What ends a job is an outcome too: Ray would make a traceback of it."""
        return pa.table({"outcome": [pickle.dumps(self._score(n)) for n in batch.column("shard").to_pylist()]})

    def _score(self, number: int) -> Done | str:
        try:
            return self._worker.score(number)
        except StartError as error:
            return str(error)


def score_on_ray(
    address: str,
    model: str,
    where: str,
    output: str,
    options: JobOptions,
    settings: Settings,
    tick: Callable[[Progress], None],
    *,
    threads: int | None,
    batch_rows: int | None,
) -> Summary:
    """Score an input into a folder that all nodes see, with one actor for each `threads` CPUs, by default a node's.

    `address` is that of a cluster, or `ray` for the one that RAY_ADDRESS names, else for one on this machine, which is
    started if none runs. The model is resolved once, here. Each shard has a separate folder with a manifest, so the
    same call resumes after a failure. `tick` is called after each shard. Call it in the main thread: Ray wants that.
    Raises BulkError and StartError, and StoppedError after SIGTERM or SIGINT.
    """
    began = time.monotonic()
    where, output = _absolute(where), _absolute(output)
    inputs = find_inputs(where)
    reference, sha256 = pinned(settings, model)
    if Path(reference.rpartition("@")[0] or reference).exists():
        reference = _absolute(reference)
    shards = cut_into_shards(inputs, options)
    facts = {
        "model": {"reference": reference, "sha256": sha256},
        "input": [file.facts() for file in inputs.files],
        "options": {**asdict(options), "batch_rows": batch_rows},
        "shards": len(shards),
    }
    total = None if inputs.rows is None else sum(shard.rows or 0 for shard in shards)
    folder = open_folder(output)
    counts, seconds, before, parts = Counts(), array("d"), 0, 0
    with folder.held():
        manifest = resume(folder, facts)
        manifest.save(folder)
        with _cluster(address):
            each, actors = _actors(threads)
            outcomes = _outcomes_of_client if address.startswith("ray://") else _outcomes
            order = Order(
                shards=shards,
                names=inputs.names(),
                output=output,
                options=options,
                model=reference,
                sha256=sha256,
                settings=_shared(settings),
                threads=each,
                batch_rows=batch_rows,
            )
            for number, done in enumerate(_done(outcomes(order, actors)), 1):
                counts.add(done.summary.counts)
                seconds.extend(done.summary.batch_seconds)
                before += done.summary.rows_before
                parts += done.summary.parts
                share = counts.rows / total if total else number / len(shards)
                tick(Progress(counts.rows, total, share, counts.failed, counts.rows - before))
        manifest.complete = True
        manifest.save(folder)
    return Summary(counts, parts, before, time.monotonic() - began, array("d", np.sort(seconds)))


def _done(outcomes: Iterator[bytes]) -> Iterator[Done]:
    """Results of shards, as they end. Raises BulkError if one failed, or if nodes differ."""
    first: Done | None = None
    for outcome in outcomes:
        done: Done | str = pickle.loads(outcome)  # noqa: S301 (an actor of this job made it)
        if isinstance(done, str):
            raise BulkError(done)
        first = first or done
        if told := list(differences(first.made_with, done.made_with)):
            raise BulkError(f"the nodes are not alike, or something changed meanwhile: {'; '.join(told)}")
        yield done


def _outcomes(order: Order, actors: int) -> Iterator[bytes]:
    """The pickled outcomes of shards, as they end."""
    if not order.shards:
        return
    DataContext.get_current().enable_progress_bars = False
    numbers = [{"shard": number} for number in range(len(order.shards))]
    outcomes = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        ShardActor,
        fn_constructor_kwargs={"order": order},
        batch_size=1,
        batch_format="pyarrow",
        # Queue an actor's next shard before it ends the present one.
        compute=ActorPoolStrategy(size=min(actors, len(numbers)), max_tasks_in_flight_per_actor=2),
        num_cpus=order.threads,
    )
    for row in outcomes.iter_rows():
        yield row["outcome"]


class Outcomes:
    """Those of `_outcomes`, as an actor gives them."""

    def __init__(self, order: Order, actors: int) -> None:
        self._outcomes = _outcomes(order, actors)

    def next(self) -> bytes | None:
        """The next one; None after the last."""
        return next(self._outcomes, None)


def _outcomes_of_client(order: Order, actors: int) -> Iterator[bytes]:
    """The same for a process that is connected by ray://. Ray Data does not run there, so an actor runs it."""
    remote = ray.remote(num_cpus=0)(Outcomes).remote(order, actors)
    while (outcome := ray.get(remote.next.remote())) is not None:
        yield outcome


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine. SIGTERM and SIGINT end the block by a StoppedError."""
    try:
        if address == "ray":
            ray.init(include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address, log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise BulkError(f"--on {address}: no Ray cluster can be reached or started: {error}") from error
    # After Ray's own, which end the process.
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(STOPPED) from None
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _actors(threads: int | None) -> tuple[int, int]:
    """CPUs of an actor, and how many actors the cluster has room for. Raises BulkError if it has room for no actor."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = threads or min((count for count in cpus if count), default=1)
    actors = sum(count // each for count in cpus)
    if actors == 0:
        raise BulkError(f"no node of the cluster has {each} CPUs: lower --threads")
    return each, actors


def _absolute(where: str) -> str:
    """Return an absolute path, which means the same in every process, or an address unchanged."""
    return where if "://" in where else str(Path(where).absolute())


def _shared(settings: Settings) -> dict[str, object]:
    """The settings that every node needs as this one has them."""
    catalogue = settings.catalogue
    return {
        "num_recommendations": settings.models.num_recommendations,
        "registry_uri": settings.models.registry_uri,
        "device": settings.engine.device,
        "items": None if catalogue.items is None else catalogue.items.absolute(),
        "hidden_items": catalogue.hidden_items and _absolute(catalogue.hidden_items),
        "catalogue_journal": None if catalogue.catalogue_journal is None else catalogue.catalogue_journal.absolute(),
        **settings.requests.model_dump(),
    }
