"""A version that answers: its batcher and engine, and what its replies and its description need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress
from pathlib import Path

import numpy as np

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Observation
from recommender.catalogue.attributes.filters import Attributes
from recommender.domain import Model
from recommender.masks import ItemMask
from recommender.models.features import Taken, Tokens, taken
from recommender.models.vocabulary import Vocabulary
from recommender.new_items import Beside, NewItems


@dataclass(slots=True, eq=False)
class Version:
    """One version of a model, loaded and warm. `limit` is the number of recommendations for requests without one.

    Of a history of ids below `plain_items` the last `plain_history` are ranked: none of them is unknown. It is -1 if
    the model needs more than a history. With a known user, features, types or times the same holds below
    `plain_beside`.
    """

    model: Model
    batcher: Batcher
    abilities: frozenset[str]
    """Which of the optional parts of the model contract the model has: inputs, and the output `scores`."""
    sha256: str
    embedding_size: int | None
    execution_provider: str
    loaded_at: datetime
    limit: int
    plain_history: int
    plain_items: float
    label: str
    close_engine: Callable[[], bool]
    """End the engine and free its memory; blocks. False if it is stuck in a run."""
    measured: tuple[Observation, ...]
    """Times of its batches, measured before it served."""
    vocabulary: Vocabulary | None = None
    user_vocabulary: Vocabulary | None = None
    """Key i is user `model.users.first + i`."""
    type_vocabulary: Vocabulary | None = None
    """Key i is type `model.history_types.first + i`."""
    plain_beside: float = 0
    needs_features: bool = False
    """Whether a request may not leave out every feature."""
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    """The strings of features, by the names of these."""
    features: tuple[Taken, ...] = field(init=False)
    """Those of the model, in its order."""
    feature_names: frozenset[str] = field(init=False)
    reads_events: bool = field(init=False)
    """Whether it reads types or times of a history's items."""
    fallback: tuple[int, ...] = ()
    fallbacks: int = 0
    """How many requests were answered from the fallback list."""
    aliases: tuple[str, ...] = ()
    masks: tuple[ItemMask, ...] = ()
    """The items that answers may hold: those that are not hidden. Replaced, never changed."""
    embedding_space: str | None = None
    """The space of its item vectors, which versions with the same name share; None for its own."""
    beside: Beside | None = None
    """New items that its answers may hold besides those of the catalogue; None without any. Replaced, never changed."""
    items_table: Path | None = None
    """Its own table of the items' attributes; None if it has none."""
    attributes: Attributes | None = None
    """Its items' attributes, for filters; None if it has none."""
    offered: tuple[int, ...] = field(init=False)
    """The fallback list without hidden items."""

    def __post_init__(self) -> None:
        self.offered = self.fallback
        self.reads_events = self.model.history_types is not None or self.model.history_times is not None
        self.features = taken(self.model.features, self.tokens)
        self.feature_names = frozenset(feature.name for feature in self.model.features)

    def offer(self, mask: ItemMask | None, new: NewItems | None = None) -> None:
        """Answer with the items of this mask, or all without one, and with new ones, from now on."""
        self.masks = () if mask is None else (mask,)
        self.beside = None if new is None else Beside(new)
        self.offered = self.fallback
        if mask is not None and self.fallback:
            kept = mask.holds(np.array(self.fallback, np.int64)).tolist()
            self.offered = tuple(compress(self.fallback, kept))
