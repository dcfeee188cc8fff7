"""Exported catalogues with a vocabulary and a fallback list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from recommender.engine import sessions
from recommender.engine.coarse import EVERY_BATCH
from recommender.export import ExportOptions, export_model
from recommender.models.card import CardFile, FileRole, card_path, file_sha256
from recommender.models.fallback import write_fallback
from recommender.models.vocabulary import write_vocabulary


def export_catalogue(folder: Path, items: int, dim: int = 8, seed: int = 0, *, coarse: bool = False) -> Path:
    """A reference model of that many items: its embeddings are `reference_embeddings(items, dim, seed)`.

    `coarse` adds a table in 8 bits.
    """
    k = min(items, 10)
    options = ExportOptions(
        items=items,
        dim=dim,
        seed=seed,
        num_recommendations=k,
        coarse="int8" if coarse else "auto",
        output=folder / f"{k}_model.onnx",
    )
    return export_model(options)


@contextmanager
def every_batch_from_8_bits() -> Iterator[None]:
    """Have models that are loaded meanwhile rank every batch by their tables in 8 bits, however quick that is here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "quickest_span", lambda *_: EVERY_BATCH)
        yield


def reference_embeddings(items: int, dim: int = 8, seed: int = 0) -> npt.NDArray[np.float32]:
    """The item embeddings [items, dim] of the reference network."""
    import torch  # noqa: PLC0415 (slow, and few tests need it)

    torch.manual_seed(seed)
    embeddings: npt.NDArray[np.float32] = torch.rand((items, dim)).numpy()
    return embeddings


def add_vocabulary(model: Path, keys: Sequence[str]) -> None:
    """Give the model item keys: key i is item i's."""
    path = model.with_suffix(".keys")
    write_vocabulary(keys, path)
    _add_file(model, path, "vocabulary")


def add_fallback(model: Path, item_ids: Sequence[int]) -> None:
    """Give the model a fallback list."""
    path = model.with_suffix(".fallback.txt")
    write_fallback(item_ids, path)
    _add_file(model, path, "fallback")


def _add_file(model: Path, path: Path, role: FileRole) -> None:
    card = json.loads(card_path(model).read_text(encoding="utf-8"))
    file = CardFile(path=path.name, role=role, size=path.stat().st_size, sha256=file_sha256(path))
    card["files"].append(file.model_dump())
    card_path(model).write_text(json.dumps(card), encoding="utf-8")
