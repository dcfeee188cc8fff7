"""A verified model: its files and its card, held to their sizes and digests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from recommender.engine.files import read_regular
from recommender.engine.onnx_file import read_onnx_file
from recommender.errors import ModelError
from recommender.models.card import CARD_NAME, SCHEMA_VERSION, Card, FileRole, card_path, file_sha256

_LARGEST_CARD = 16 << 20
"""Bytes: thousands of golden answers."""
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a model, as its source names it.

    `stamp` changes whenever the content may have changed, so a refused release is tried again only if it may have been
    fixed. `aliases` are further names by which a request may ask for the version.
    """

    name: str
    version: str
    stamp: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """`name@version`, as replies and logs name it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file that matches its card; `card` is None for a file without one.

    `release` is the source's name for it, which overrides the card's.
    """

    path: Path
    sha256: str
    card: Card | None
    release: Release | None = None

    @property
    def name(self) -> str:
        """The source's name for the model, else the card's, else the file's."""
        if self.release is not None:
            return self.release.name
        return self.card.name if self.card else self.path.stem

    @property
    def vocabulary(self) -> Path | None:
        """The file of the item keys, if the card names one."""
        return self._file("vocabulary")

    @property
    def user_vocabulary(self) -> Path | None:
        """The file of the user keys, if the card names one."""
        return self._file("user_vocabulary")

    @property
    def type_vocabulary(self) -> Path | None:
        """The file of the keys of event types, if the card names one."""
        return self._file("type_vocabulary")

    @property
    def fallback(self) -> Path | None:
        """The file of the fallback list, if the card names one."""
        return self._file("fallback")

    @property
    def items_table(self) -> Path | None:
        """The file of the items' attributes, if the card names one."""
        return self._file("items_table")

    def feature_vocabulary(self, name: str) -> Path | None:
        """The file of a feature's strings, if the card lists it as one."""
        files = self.card.files if self.card else ()
        listed = any(file.path == name and file.role == "feature_vocabulary" for file in files)
        return self.path.parent / name if listed else None

    def _file(self, role: FileRole) -> Path | None:
        files = self.card.files if self.card else ()
        return next((self.path.parent / file.path for file in files if file.role == role), None)

    @property
    def version(self) -> str:
        """The source's version of the model, else the card's, else the start of the file's digest."""
        if self.release is not None:
            return self.release.version
        return self.card.version if self.card else self.sha256[:12]


def open_version(folder: Path, release: Release) -> Artifact:
    """Open a folder that holds one version of a model: `card.json` and the files it lists, the model among them.

    Raises ModelError as `open_artifact` does.
    """
    beside = folder / CARD_NAME
    card = read_card(beside)
    model = next((file.path for file in card.files if file.role == "model"), None)
    if model is None:
        raise ModelError(f"{beside} lists no file as its model; export the model again")
    return _verified(folder / model, beside, card, release)


def open_artifact(path: Path) -> Artifact:
    """Read the card next to a model file and check the size and digest of every file it lists.

    Raises ModelError if the card is unreadable or a file is missing, truncated or altered.
    """
    beside = card_path(path)
    if not os.path.lexists(beside):
        return Artifact(path, file_sha256(path), None)
    return _verified(path, beside, read_card(beside), None)


def _verified(path: Path, beside: Path, card: Card, release: Release | None) -> Artifact:
    digest = None
    names = [file.path for file in card.files]
    if len(set(names)) < len(names):
        raise ModelError(f"{beside} lists a file twice; export the model again")
    for file in card.files:
        member = beside.parent / file.path
        if "\0" in file.path or member.resolve().parent != beside.parent.resolve():
            raise ModelError(f"{beside} lists {file.path!r}, which is not in the card's own folder")
        found = _checked_digest(member, file.size, file.sha256, beside)
        if member.name == path.name and file.role == "model":
            digest = found
    if digest is None:
        raise ModelError(f"{beside} does not list {path.name} as its model; export the model again")
    return Artifact(path, digest, card, release)


def read_card(path: Path) -> Card:
    """The card in a file. Raises ModelError if it cannot be read or is of a later schema than this program reads."""
    try:
        card = Card.model_validate_json(read_regular(path, _LARGEST_CARD))
    except OSError as error:
        raise ModelError(f"the card {path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelError(f"the card {path} is not valid: {where}: {first['msg']}; export the model again") from error
    if card.schema_version > SCHEMA_VERSION:
        raise ModelError(
            f"the card {path} has schema version {card.schema_version} and this program reads up to "
            f"{SCHEMA_VERSION}: update the server, or export the model with the version that serves it"
        )
    return card


def check_listed(artifact: Artifact) -> None:
    """Raise ModelError if the model opens a file that its card does not list. Without a card there is no list."""
    if artifact.card is None:
        return
    listed = {file.path for file in artifact.card.files}
    unlisted = sorted(read_onnx_file(artifact.path).elsewhere - listed)
    if unlisted:
        raise ModelError(
            f"{artifact.path} reads {unlisted[0][:_SHOWN]!r}, which its card does not list, so its origin is "
            "unknown; export the model again with its card"
        )


def _checked_digest(path: Path, size: int, sha256: str, card: Path) -> str:
    try:
        found_size = path.stat().st_size
        found = file_sha256(path) if found_size == size else ""
    except OSError as error:
        raise ModelError(f"{card} lists {path.name}, which cannot be read: {error}") from error
    if found_size != size:
        raise ModelError(
            f"{path} has {found_size} bytes and its card says {size}: the file was cut short or replaced; "
            "copy it again, or export it again with its card"
        )
    if found != sha256:
        raise ModelError(
            f"{path} has the SHA-256 {found} and its card says {sha256}: the file was altered or replaced; "
            "copy it again, or export it again with its card"
        )
    return found
