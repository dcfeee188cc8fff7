"""Open a reference to a model: a file, a folder of versions, a model in a registry, or the package's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from recommender.errors import StartError
from recommender.models.artifact import Artifact, Release, open_version
from recommender.models.card import CARD_NAME
from recommender.models.sources.cache import Cache, spare_folder
from recommender.models.sources.file import FileSource, find_model
from recommender.models.sources.folder import FolderSource
from recommender.models.sources.mlflow import Registry
from recommender.models.sources.reference import REFERENCE, reference_model
from recommender.models.sources.registry import SCHEME, RegisteredSource
from recommender.models.sources.remote import Lookup, RemoteRegistry
from recommender.models.sources.source import Progress, Source
from recommender.settings.models import ModelSettings


def open_sources(settings: ModelSettings) -> list[Source]:
    """Open the source of each model that the settings name, in their order. Blocks. Raises StartError."""
    references = [each.strip() for each in (settings.model or "").split(",") if each.strip()]
    if not references:
        return [FileSource(find_model(settings.weights_dir, settings.num_recommendations, None), open_cache(settings))]
    with contextlib.ExitStack() as opened:
        sources = [
            opened.enter_context(contextlib.closing(open_source(settings, each, open_remote_registry)))
            for each in references
        ]
        opened.pop_all()
        return sources


def open_source(settings: ModelSettings, reference: str, open_registry: Callable[[ModelSettings], Lookup]) -> Source:
    """Open what a reference means: a model in the registry, `reference`, a model file, or a folder of versions.

    A folder may be pinned to a version after an `@`. `open_registry` opens the registry, if it is needed. Close the
    source in the end. Blocks. Raises StartError if the reference means nothing.
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


def fetch_model(settings: ModelSettings, reference: str, progress: Progress) -> Artifact:
    """The files of what a reference means now, a version's own folder included. Blocks. Raises StartError."""
    path = Path(reference)
    if (path / CARD_NAME).is_file():
        return open_version(path, Release(path.absolute().parent.name, path.absolute().name))
    with contextlib.closing(open_source(settings, reference, open_registry)) as source:
        return source.fetch(source.wanted(), progress)


def open_cache(settings: ModelSettings) -> Cache:
    """The model cache. Where the default folder cannot be made, as without a home, a temporary one serves."""
    is_default = settings.model_cache_dir == ModelSettings().model_cache_dir
    return Cache(settings.model_cache_dir, spare_folder() if is_default else None)


def open_registry(settings: ModelSettings) -> Registry:
    """Open the registry that the settings name, in this process. Blocks. Raises StartError if they name none."""
    return Registry(_registry_uri(settings))


def open_remote_registry(settings: ModelSettings) -> RemoteRegistry:
    """Open it for a server, with a separate process that asks it. Blocks. Raises as `open_registry` does."""
    return RemoteRegistry(
        _registry_uri(settings),
        patience=settings.registry_timeout_ms / 1e3,
        longest=settings.reload_timeout_ms / 1e3,
    )


def _registry_uri(settings: ModelSettings) -> str:
    if not settings.registry_uri:
        raise StartError(
            f"a model of a registry ({SCHEME}…) needs RECOMMENDER_REGISTRY_URI, such as http://localhost:5000"
        )
    return settings.registry_uri
