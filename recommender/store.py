"""Where models come from: a file and its card on disk → a verified Artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from recommender.card import SCHEMA_VERSION, Card, FileRole, card_path, file_sha256
from recommender.errors import ModelError

_NAMED_FILES = 20
"""How many files a message lists before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file that is what its card says; `card` is None where there is none to hold it to."""

    path: Path
    sha256: str
    card: Card | None

    @property
    def name(self) -> str:
        """The card's name for the model, else the file's."""
        return self.card.name if self.card else self.path.stem

    @property
    def vocabulary(self) -> Path | None:
        """The file of the item keys, if the card names one."""
        return self._file("vocabulary")

    @property
    def fallback(self) -> Path | None:
        """The file of the fallback list, if the card names one."""
        return self._file("fallback")

    def _file(self, role: FileRole) -> Path | None:
        files = self.card.files if self.card else ()
        return next((self.path.parent / file.path for file in files if file.role == role), None)

    @property
    def version(self) -> str:
        """The card's version of the model, else the start of the file's digest."""
        return self.card.version if self.card else self.sha256[:12]


def find_model(weights_dir: Path, num_recommendations: int, model: Path | None) -> Path:
    """The model file to serve: `model` where it is given, else `{num_recommendations}_model.onnx`.

    Raises ModelError if there is no such file, with the files that there are.
    """
    path = model or weights_dir / f"{num_recommendations}_model.onnx"
    if path.is_file():
        return path
    folder = path.parent
    if not folder.is_dir():
        found = f"and there is no folder {folder}"
    else:
        others = sorted(file.name for file in folder.glob("*.onnx"))
        named = ", ".join(others[:_NAMED_FILES]) or "no .onnx file"
        more = f" and {len(others) - _NAMED_FILES} more" if len(others) > _NAMED_FILES else ""
        found = f"that folder has {named}{more}"
    if model:
        remedy = "set RECOMMENDER_MODEL to a file that exists, or leave it empty to serve from RECOMMENDER_WEIGHTS_DIR"
    else:
        remedy = (
            f"make it with `recommender export --num-recommendations {num_recommendations} --output {path}`, "
            "or set RECOMMENDER_NUM_RECOMMENDATIONS, RECOMMENDER_WEIGHTS_DIR or RECOMMENDER_MODEL to what exists"
        )
    raise ModelError(f"there is no model file {path} ({found}); {remedy}")


def open_artifact(path: Path) -> Artifact:
    """Read the card beside a model file and hold every file it lists to its size and digest.

    Raises ModelError if the card cannot be read or a file is missing, cut short or altered.
    """
    beside = card_path(path)
    if not beside.is_file():
        return Artifact(path, file_sha256(path), None)
    card = _read_card(beside)
    digest = None
    for file in card.files:
        member = beside.parent / file.path
        if member.resolve().parent != beside.parent.resolve():
            raise ModelError(f"{beside} lists {file.path!r}, which is not in the card's own folder")
        found = _checked_digest(member, file.size, file.sha256, beside)
        if member.name == path.name and file.role == "model":
            digest = found
    if digest is None:
        raise ModelError(f"{beside} does not list {path.name} as its model; export the model again")
    return Artifact(path, digest, card)


def _read_card(path: Path) -> Card:
    try:
        card = Card.model_validate_json(path.read_bytes())
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
