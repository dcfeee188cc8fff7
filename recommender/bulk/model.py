"""Open a model for bulk scoring: resolved, checked and warmed up as the server does it, without a batcher's loop."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from recommender.api.queries import Limits
from recommender.bulk.errors import BulkError
from recommender.bulk.ranker import Ranker
from recommender.catalogue.availability.opening import open_list
from recommender.engine.contract import Contract
from recommender.engine.engine import OnnxEngine
from recommender.engine.machine import available_cpus
from recommender.models.artifact import Artifact
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability
from recommender.models.card import CARD_NAME
from recommender.models.loader import loader
from recommender.models.sources.opening import fetch_model
from recommender.models.sources.registry import SCHEME
from recommender.models.version import Version
from recommender.settings.engine import LARGEST_BATCH, MOST_THREADS
from recommender.settings.settings import Settings
from recommender.threads import in_background

_LEAST_ROWS, _MOST_ROWS = 64, 256
_SCORES_OF_A_RUN = 1 << 20
"""Scores that a run computes at most, if that leaves it `_LEAST_ROWS` rows: 4 MB stay in the caches of a core."""
_SLOTS = 64

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BulkModel:
    """A model that is ready: `slots` threads may rank at once, batches of `batch_rows`."""

    version: Version
    ranker: Ranker
    limits: Limits
    reference: str
    slots: int
    threads: int
    batch_rows: int
    contract: Contract
    items_digest: str | None = None
    """The digest of the table of items; None without one."""

    @property
    def hidden_digest(self) -> str | None:
        """The digest of the hidden items; None if no item is hidden."""
        masks = self.version.masks
        return hashlib.sha256(b"".join(mask.bits.tobytes() for mask in masks)).hexdigest() if masks else None

    @property
    def feature_names(self) -> list[str]:
        """The features that it takes."""
        return [feature.name for feature in self.version.model.features]

    def close(self) -> None:
        """End the engine and free its memory."""
        self.version.close_engine()


async def open_bulk_model(
    settings: Settings, reference: str, *, threads: int | None = None, batch_rows: int | None = None
) -> BulkModel:
    """Open what a reference means now, with so many CPUs, by default all.

    Every run has one CPU, and as many go at once as there are CPUs: no thread waits for another. Items that are hidden
    now stay so, and the table of items stays as it is now. Raises StartError.
    """
    cpus = threads or available_cpus()
    artifact = await in_background(fetch_model, settings.models, reference, _ignored)
    slots = min(cpus, _SLOTS) if settings.engine.device in ("auto", "cpu") else settings.engine.engine_slots
    rows = batch_rows or _rows(artifact)
    if not (0 < rows <= LARGEST_BATCH and 0 < cpus <= MOST_THREADS):
        raise BulkError(f"a batch has 1 to {LARGEST_BATCH} rows, and threads are 1 to {MOST_THREADS}")
    settings = settings.replace(engine_slots=slots, threads=max(cpus // slots, 1), max_batch_size=rows)
    engines: list[OnnxEngine] = []
    catalogue = settings.catalogue
    availability = Availability(open_list(catalogue.hidden_items), journal=catalogue.catalogue_journal)
    attributes = ItemAttributes.of(catalogue)

    async def prepare(version: Version) -> None:
        await availability.attach(version)
        await attributes.attach(version)

    try:
        await availability.start()
        await attributes.start()
        version = await loader(settings, opened_engine=engines.append, prepare=prepare).load(artifact)
    finally:
        await availability.close()
        await attributes.close()
    await version.batcher.close()
    (engine,) = engines
    return BulkModel(
        version,
        Ranker(engine),
        Limits.of(settings.requests),
        reference,
        slots,
        engine.threads,
        rows,
        engine.contract,
        None if version.attributes is None else version.attributes.digest,
    )


def open_pinned(
    settings: Settings,
    reference: str,
    sha256: str | None,
    *,
    threads: int | None = None,
    batch_rows: int | None = None,
) -> BulkModel:
    """Open a model as `open_bulk_model` does, if it has this digest. Blocks, also where an event loop runs.

    Raises StartError.
    """
    with ThreadPoolExecutor(1) as alone:
        opening = open_bulk_model(settings, reference, threads=threads, batch_rows=batch_rows)
        model = alone.submit(asyncio.run, opening).result()
    if sha256 not in (None, model.version.sha256):
        model.close()
        raise BulkError(f"{reference} has the SHA-256 {model.version.sha256}, not {sha256}")
    return model


def _rows(artifact: Artifact) -> int:
    """Rows of a batch for a catalogue of this size."""
    items = artifact.card.items if artifact.card else 1
    rows = _MOST_ROWS
    while rows > _LEAST_ROWS and rows * items > _SCORES_OF_A_RUN:
        rows //= 2
    return rows


def _ignored(done: int, total: int) -> None:
    """Ignore the progress of a download."""


def pinned(settings: Settings, reference: str) -> tuple[str, str]:
    """A reference that means what this one means now, whenever it is opened, and the digest of its model.

    Blocks. Raises StartError.
    """
    artifact = fetch_model(settings.models, reference, _ignored)
    release = artifact.release
    if release is not None and reference.startswith(SCHEME):
        return f"{SCHEME}{release.name}/{release.version}", artifact.sha256
    if release is not None and not (Path(reference) / CARD_NAME).is_file():
        folder = reference.rpartition("@")[0] or reference
        return f"{folder}@{release.version}", artifact.sha256
    return reference, artifact.sha256
