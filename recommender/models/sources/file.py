"""One model file as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recommender.errors import ModelError
from recommender.models.artifact import Artifact, Release
from recommender.models.sources.cache import Cache
from recommender.models.sources.copies import keep_copied, open_copied
from recommender.models.sources.source import Progress

_NAMED_FILES = 20
"""How many files a message lists before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """One model file, served as it is at the start. `cache` keeps copies of files that are mapped."""

    path: Path
    cache: Cache
    may_change: bool = False
    names: frozenset[str] = frozenset()

    @property
    def reference(self) -> str:
        """The file's path."""
        return str(self.path)

    def wanted(self) -> Release:
        """The file, by its own name until it is opened."""
        return Release(self.path.stem, "")

    def others(self) -> Sequence[Release]:
        """Nothing: a file has no versions."""
        return ()

    def fetch(self, release: Release, progress: Progress) -> Artifact:  # noqa: ARG002 (there is but one)
        """The file, held to its card. Raises ModelError, and SourceError if the cache is not writable."""
        return open_copied(self.path, None, self.cache)

    def keep(self, release: Release) -> None:  # noqa: ARG002 (there is but one)
        """Keep the copy of its files, if there is one."""
        keep_copied(self.path, None, self.cache, str(self.path.absolute()))

    def close(self) -> None:
        """Nothing to end."""


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
            "or set RECOMMENDER_NUM_RECOMMENDATIONS, RECOMMENDER_WEIGHTS_DIR or RECOMMENDER_MODEL to what exists; "
            "to try the server out, serve the reference model of this package: `recommender serve reference`, "
            "or RECOMMENDER_MODEL=reference"
        )
    raise ModelError(f"there is no model file {path} ({found}); {remedy}")
