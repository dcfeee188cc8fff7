"""A model in a registry as a source: `models:/<name>@<alias>` or `models:/<name>/<version>`, cached by digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from recommender.errors import ModelError
from recommender.models.artifact import Artifact, Release, open_version
from recommender.models.card import CARD_NAME, file_sha256
from recommender.models.sources.cache import Cache
from recommender.models.sources.mlflow import CARD_TAG, Registered
from recommender.models.sources.remote import Lookup
from recommender.models.sources.source import Progress

SCHEME = "models:/"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class RegisteredSource:
    """The version of an alias, followed as it moves, or one fixed version.

    Its files come from the registry once and later from the cache.
    """

    def __init__(self, reference: str, registry: Lookup, cache: Cache) -> None:
        parts = _REFERENCE.fullmatch(reference)
        if parts is None:
            raise ModelError(f"{reference!r} is neither models:/<name>@<alias> nor models:/<name>/<version>")
        self.reference = reference
        self._name = parts["name"]
        self._alias: str | None = parts["alias"]
        self._version: str | None = parts["version"]
        self._registry = registry
        self._cache = cache

    @property
    def names(self) -> frozenset[str]:
        """The model's name, alone and with the alias or the version."""
        return frozenset({self._name, f"{self._name}@{self._alias or self._version}"})

    @property
    def may_change(self) -> bool:
        """Whether it is an alias, which may move."""
        return self._alias is not None

    def wanted(self) -> Release:
        """The current version of the alias, or the fixed one."""
        return self._release(self._ask())

    def others(self) -> Sequence[Release]:
        """The release that this reference served last on this machine."""
        remembered = self._cache.remembered(self._noted_as)
        return () if remembered is None else (remembered,)

    def fetch(self, release: Release, progress: Progress) -> Artifact:
        """The version's files from the cache, or from the registry and then in the cache. Raises as `wanted` does."""

        def download(folder: Path) -> None:
            registered = self._registry.version(release.name, release.version)
            self._registry.download(registered, folder, progress)
            promised = registered.tags.get(CARD_TAG)
            found = file_sha256(folder / CARD_NAME)
            if promised is not None and found != promised:
                raise ModelError(
                    f"{registered.label}: its card has the SHA-256 {found} and the registry says {promised}: it was "
                    "altered after it was published; publish it again"
                )

        return self._cache.obtain(release.stamp, download, lambda folder: open_version(folder, release))

    def keep(self, release: Release) -> None:
        """Remember the release for a start without a registry."""
        self._cache.remember(self._noted_as, release)

    def close(self) -> None:
        """Ask the registry no longer."""
        self._registry.close()

    @property
    def _noted_as(self) -> str:
        return f"{self._registry.address} {self.reference}"

    def _ask(self) -> Registered:
        if self._alias is not None:
            return self._registry.by_alias(self._name, self._alias)
        return self._registry.version(self._name, self._version or "")

    def _release(self, registered: Registered) -> Release:
        aliases = () if self._alias is None else (self._alias,)
        return Release(registered.name, registered.version, _digest(self._registry.address, registered), aliases)


def _digest(address: str, registered: Registered) -> str:
    """Cache key of its files: the card's digest, which covers theirs; else the registry's name for it."""
    told = registered.tags.get(CARD_TAG, "")
    if re.fullmatch(r"[0-9a-f]{64}", told):
        return told
    called = f"{address}\n{registered.name}\n{registered.version}\n{registered.source}"
    return hashlib.sha256(called.encode()).hexdigest()
