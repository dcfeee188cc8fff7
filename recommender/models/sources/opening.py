"""What a reference to a model means: a file, a folder of versions, a model in a registry, or the one in the package."""

from __future__ import annotations

from pathlib import Path

import structlog

from recommender.errors import StartError
from recommender.models.sources.cache import Cache, spare_folder
from recommender.models.sources.file import FileSource, find_model
from recommender.models.sources.folder import FolderSource
from recommender.models.sources.mlflow import Registry
from recommender.models.sources.reference import REFERENCE, reference_model
from recommender.models.sources.registry import SCHEME, RegisteredSource
from recommender.models.sources.source import Source
from recommender.settings.models import ModelSettings

log = structlog.get_logger(__name__)


def open_sources(settings: ModelSettings) -> list[Source]:
    """Open the source of each model that the settings name, in their order. Blocks. Raises StartError."""
    references = [each.strip() for each in (settings.model or "").split(",") if each.strip()]
    if not references:
        return [FileSource(find_model(settings.weights_dir, settings.num_recommendations, None), open_cache(settings))]
    return [open_source(settings, reference) for reference in references]


def open_source(settings: ModelSettings, reference: str) -> Source:
    """Open what a reference means: a model in the registry, `reference`, a model file, or a folder of versions.

    A folder may be pinned to a version after an `@`. Blocks. Raises StartError if the reference means nothing.
    """
    cache = open_cache(settings)
    if reference.startswith(SCHEME):
        return RegisteredSource(reference, open_registry(settings), cache)
    if reference == REFERENCE:
        return FileSource(reference_model(), cache)
    path = Path(reference)
    if path.suffix == ".onnx" or path.is_file():
        return FileSource(find_model(settings.weights_dir, settings.num_recommendations, path), cache)
    folder, _, pinned = reference.rpartition("@")
    return FolderSource(Path(folder), cache, pinned) if folder else FolderSource(path, cache)


def open_cache(settings: ModelSettings) -> Cache:
    """The model cache. Where the default folder cannot be made, as without a home, a temporary one serves.

    Raises StartError if the folder stands for a home that nobody has.
    """
    wanted = settings.model_cache_dir
    spare = spare_folder() if wanted == ModelSettings().model_cache_dir else None
    try:
        return Cache(wanted.expanduser(), spare)
    except RuntimeError as error:
        if spare is None:
            raise StartError(f"RECOMMENDER_MODEL_CACHE_DIR is {wanted}, and there is no such home: {error}") from error
        log.warning("the model cache is a temporary folder: this user has no home", folder=str(spare))
        return Cache(spare)


def open_registry(settings: ModelSettings) -> Registry:
    """Open the registry that the settings name. Blocks. Raises StartError if they name none."""
    if not settings.registry_uri:
        raise StartError(
            f"a model of a registry ({SCHEME}…) needs RECOMMENDER_REGISTRY_URI, such as http://localhost:5000"
        )
    return Registry(settings.registry_uri)
