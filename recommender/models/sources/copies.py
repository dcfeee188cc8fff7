"""Versions with files that are mapped while they are served: opened from a copy in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recommender.engine.files import open_regular
from recommender.engine.onnx_file import read_onnx_file
from recommender.errors import ModelError
from recommender.models.artifact import Artifact, Release, open_artifact, open_version, read_card
from recommender.models.card import CARD_NAME, Card, card_path, file_sha256
from recommender.models.sources.cache import Cache

_MAPPED = frozenset({"vocabulary", "user_vocabulary", "type_vocabulary", "feature_vocabulary", "external_data"})
_PIECE = 1 << 24


@dataclass(frozen=True, slots=True)
class _Original:
    """The files of a version where its owner keeps them, and what their copy is called; None if none is mapped.

    `model` is the model file, and None in a folder that is a version.
    """

    folder: Path
    model: str | None
    release: Release | None
    names: tuple[str, ...]
    digest: str | None

    def open(self, folder: Path) -> Artifact:
        if self.release is not None:
            return open_version(folder, self.release)
        return open_artifact(folder / (self.model or ""))

    def copy(self, target: Path) -> None:
        self.open(self.folder)  # its errors name the files as their owner does
        for name in self.names:
            _copy(self.folder / name, target / name)


def open_copied(source: Path, release: Release | None, cache: Cache) -> Artifact:
    """Open the folder of a release, or a model file if `release` is None; from a copy if any of its files is mapped.

    Raises ModelError if the files are at fault, SourceError if the cache cannot be written.
    """
    original = _original(source, release)
    if original.digest is None:
        return original.open(original.folder)
    return cache.obtain(original.digest, original.copy, original.open)


def keep_copied(source: Path, release: Release | None, cache: Cache, reference: str) -> None:
    """Have the cache keep the copy that `open_copied` opened, if any; what no reference serves goes with time."""
    original = _original(source, release)
    if original.digest is not None:
        cache.remember(reference, dataclasses.replace(release or Release(source.name, ""), stamp=original.digest))


def _original(source: Path, release: Release | None) -> _Original:
    folder, model, beside = source, None, source / CARD_NAME
    if release is None:
        folder, model, beside = source.parent, source.name, card_path(source)
        if not os.path.lexists(beside):
            return _without_card(source)
    card = read_card(beside)
    digest = None
    if any(file.role in _MAPPED for file in card.files):
        digest = _digest(beside.parent, [beside.name])
        if beside.name != CARD_NAME:
            digest = hashlib.sha256(f"{beside.name} {digest}".encode()).hexdigest()
    return _Original(folder, model, release, _names(card, beside), digest)


def _without_card(path: Path) -> _Original:
    names = (path.name, *sorted(read_onnx_file(path).elsewhere))
    mapped = len(names) > 1 and all(Path(name).name == name for name in names)
    return _Original(path.parent, path.name, None, names, _digest(path.parent, names) if mapped else None)


def _names(card: Card, beside: Path) -> tuple[str, ...]:
    return *(file.path for file in card.files), beside.name


def _digest(folder: Path, names: Sequence[str]) -> str:
    """The digest of a file, or of several with their names. Raises ModelError if one cannot be read."""
    try:
        digests = [file_sha256(folder / name) for name in names]
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    if len(digests) == 1:
        return digests[0]
    told = "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256(told.encode()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy a regular file. Raises ModelError if it cannot be read, OSError if the copy cannot be written."""
    try:
        file = open_regular(source)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror or error}") from error
    with file, target.open("wb") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
