"""Score on a Ray cluster: a pipeline of Ray Data whose actors hold a `Scorer` each."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from recommender.bulk.answers import Counts
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import find_inputs, open_filesystem
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import PARQUET, JobOptions, Summary
from recommender.bulk.model import pinned
from recommender.bulk.scorer import Scorer
from recommender.settings.settings import Settings

_READ_CPUS = 0.25
"""What a task that reads or writes is counted as."""
_SHARE_OF_ACTORS = 0.5
"""Actors are counted as half of their CPUs: were they counted whole, no task could read beside them."""
_BATCH_ROWS = 16_384
_BLOCKS_OF_AN_ACTOR = 4
"""Blocks that the input has for each actor at least, so that none waits for work in the end."""
_LEAST_BLOCK_BYTES, _MOST_BLOCK_BYTES = 1 << 20, 8 << 20
"""Ray would make blocks of 128 MB: a file of some million rows would go to one actor, and the others had nothing."""


def score_on_ray(
    address: str,
    model: str,
    where: str,
    output: str,
    options: JobOptions,
    settings: Settings,
    *,
    threads: int | None,
    batch_rows: int | None,
    checkpoint: str | None,
) -> Summary:
    """Score an input into a folder that all nodes see, with one actor for each `threads` CPUs, by default a node's.

    `address` is that of a cluster, or `ray` for the one that RAY_ADDRESS names, else for one on this machine. The model
    is resolved once, here. With a folder for a `checkpoint` the same call goes on after a failure; each row needs a
    user of its own then. Rows come in any order, in files of `part_rows` or more. Raises BulkError and StartError.
    """
    began = time.monotonic()
    where, output = _absolute(where), _absolute(output)
    inputs = find_inputs(where)
    reference, sha256 = pinned(settings, model)
    if Path(reference.rpartition("@")[0] or reference).exists():
        reference = _absolute(reference)
    checkpoint = None if checkpoint is None else _absolute(checkpoint)
    # Ray deletes the checkpoints of a job that is done: its output would be written again beside itself.
    if open_folder(output).files() and not (checkpoint is not None and _has_files(checkpoint)):
        why = "" if checkpoint is None else f", and {checkpoint} has no checkpoints to go on from"
        raise BulkError(f"{output} is not empty{why}: name an empty folder")
    if address == "ray":
        ray.init(include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
    else:
        ray.init(address, ignore_reinit_error=True)
    _keep_checkpoints(checkpoint, options)
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = threads or min((count for count in cpus if count), default=1)
    actors = sum(count // each for count in cpus)
    if actors == 0:
        raise BulkError(f"no node of the cluster has {each} CPUs: lower --threads")
    blocks = max(len(inputs.files), _BLOCKS_OF_AN_ACTOR * actors)
    DataContext.get_current().target_max_block_size = min(
        max(inputs.bytes // blocks, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES
    )
    dataset = _read(inputs.files[0].kind, [file.path for file in inputs.files], inputs.filesystem, blocks)
    if options.limit_rows is not None:
        dataset = dataset.limit(options.limit_rows)
    scored = dataset.map_batches(
        Scorer,
        fn_constructor_kwargs={
            "model": reference,
            "columns": options.columns,
            "ignore": options.ignore,
            "exclude_history": options.exclude_history,
            "threads": each,
            "batch_rows": batch_rows,
            "settings": {"num_recommendations": settings.models.num_recommendations, **_shared(settings)},
            "sha256": sha256,
        },
        batch_format="pyarrow",
        batch_size=_BATCH_ROWS,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=each * _SHARE_OF_ACTORS,
    )
    filesystem, path = open_filesystem(output)
    scored.write_parquet(
        path,
        filesystem=filesystem,
        ray_remote_args={"num_cpus": _READ_CPUS},
        min_rows_per_file=options.part_rows,
        mode="append",
        **PARQUET,
    )
    counts, parts = _counted(filesystem, path)
    return Summary(counts, parts, 0, time.monotonic() - began, array("d"))


def _absolute(where: str) -> str:
    """A path that means the same in every process, whatever folder that runs in; an address as it is."""
    return where if "://" in where else str(Path(where).absolute())


def _has_files(where: str) -> bool:
    filesystem, path = open_filesystem(where)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return any(each.is_file for each in found)


def _read(kind: str, paths: list[str], filesystem: Any, blocks: int) -> ray.data.Dataset:  # noqa: ANN401 (Ray has no types)
    readers = {"parquet": ray.data.read_parquet, "csv": ray.data.read_csv, "jsonl": ray.data.read_json}
    if kind not in readers:
        raise BulkError(f"on Ray the input is Parquet, CSV or JSONL, not {kind}")
    more = {"lines": True} if kind == "jsonl" else {}
    return readers[kind](
        paths,
        filesystem=filesystem,
        num_cpus=_READ_CPUS,
        override_num_blocks=blocks,
        **more,
    )


def _shared(settings: Settings) -> dict[str, object]:
    """The settings that every node needs as this one has them."""
    catalogue = settings.catalogue
    return {
        "registry_uri": settings.models.registry_uri,
        "items": None if catalogue.items is None else catalogue.items.absolute(),
        "hidden_items": catalogue.hidden_items and _absolute(catalogue.hidden_items),
        "catalogue_journal": None if catalogue.catalogue_journal is None else catalogue.catalogue_journal.absolute(),
        **settings.requests.model_dump(),
    }


def _keep_checkpoints(folder: str | None, options: JobOptions) -> None:
    """Have Ray Data keep checkpoints, if its version can."""
    context = DataContext.get_current()
    if folder is None:
        return
    if "user" not in options.columns:
        raise BulkError("a checkpoint knows rows by their users: name their column with --user")
    try:
        from ray.data.checkpoint import CheckpointConfig  # noqa: PLC0415 (younger than the oldest version we take)
    except ImportError as error:
        raise BulkError(f"Ray {ray.__version__} keeps no checkpoints: install a later one") from error
    context.checkpoint_config = CheckpointConfig(id_column=options.columns["user"], checkpoint_path=folder)


def _counted(filesystem: Any, path: str) -> tuple[Counts, int]:  # noqa: ANN401 (pyarrow has no types)
    """Count what was written, a batch at a time."""
    written = pads.dataset(path, filesystem=filesystem, format="parquet")
    counts = Counts()
    for batch in written.to_batches(columns=["source", "error_kind"]):
        counts.rows += len(batch)
        counts.fallbacks += batch.column("source").to_pylist().count("fallback")
        counts.errors.update(Counter(kind for kind in batch.column("error_kind").to_pylist() if kind is not None))
    return counts, len(written.files)
