"""The nouns passed around: what is asked, what is answered, and what a model can give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from recommender.masks import ItemMask
from recommender.new_items import Beside
from recommender.rules import Rules

UnknownUsers: TypeAlias = Literal["row", "history", "fallback"]
"""How a model ranks for an unknown user."""

LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
"""The largest number that float32 holds."""
FeatureKind: TypeAlias = Literal["int64", "float", "bool", "string"]
Number: TypeAlias = int | float
"""A bool is one too."""
FeatureValue: TypeAlias = Number | tuple[Number, ...]
"""The value of a feature: one number, or as many as the feature is wide."""


class Query(NamedTuple):
    """One row of a batch: the ids of a history, oldest first, and how many recommendations to return.

    Items in `excluded` are never recommended. With `candidates` only they are ranked: each once, ascending, none of
    them excluded. `user` is read by models that take users; 0 is an unknown one. `history_types` and `history_times`
    (Unix milliseconds) have a number for each item of the history, or are empty: then the model reads its defaults.
    `features` are in the order of the model's; if empty, each is its filler. An answer holds only items that each of
    the `masks` allows: one mask may be shared by all rows, another belong to one. Items `beside` the catalogue are
    ranked with it; masks, `excluded` and `candidates` do not apply to them. With `rules` items are ordered and chosen
    by these; scores are then the boosted ones.
    """

    history: tuple[int, ...]
    k: int
    excluded: tuple[int, ...] = ()
    candidates: tuple[int, ...] | None = None
    user: int = 0
    history_types: tuple[int, ...] = ()
    history_times: tuple[int, ...] = ()
    features: tuple[FeatureValue, ...] = ()
    masks: tuple[ItemMask, ...] = ()
    beside: Beside | None = None
    rules: Rules | None = None

    @property
    def told(self) -> str:
        """The history and its inputs, as messages name them."""
        of_types = f" with the types {list(self.history_types)}" if self.history_types else ""
        of_times = f" at the times {list(self.history_times)}" if self.history_times else ""
        of_user = f" of user {self.user}" if self.user else ""
        features = f" with the features {list(self.features)}" if self.features else ""
        return f"the history {list(self.history)}{of_types}{of_times}{of_user}{features}"


class Ranking(NamedTuple):
    """The answer to one query: item ids, best first, ties by the lower id (on CUDA in any order), and their scores."""

    item_ids: list[int]
    scores: list[float]

    def equals(self, other: Ranking, tolerance: float) -> bool:
        """Whether both have the same items in the same order, up to scores that `tolerance` cannot separate.

        Sums over padded histories round differently in different batches. So two items whose scores are within
        `tolerance` of each other may change places, or one may push the other off the end.
        """
        if not (self.scores or other.scores):
            return self.item_ids == other.item_ids
        if len(self.item_ids) != len(other.item_ids) or len(self.scores) != len(other.scores):
            return False
        if not _close(self.scores, other.scores, tolerance):
            return False
        ours = dict(zip(self.item_ids, self.scores, strict=True))
        theirs = dict(zip(other.item_ids, other.scores, strict=True))
        if len(ours) != len(theirs):
            return False
        last = min(self.scores[-1], other.scores[-1])
        for mine, yours in ((ours, theirs), (theirs, ours)):
            for item, score in mine.items():
                # An item that only one side has must be tied, within the tolerance, with the last place.
                found = yours.get(item, last)
                if not abs(score - found) <= 2 * tolerance:
                    return False
        return True


def _close(left: Sequence[float], right: Sequence[float], tolerance: float) -> bool:
    """Whether the numbers agree place by place; a NaN agrees with nothing, an infinity with itself."""
    return all(a == b or abs(a - b) <= tolerance for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, slots=True)
class Users:
    """The users that a model takes: `count` consecutive ids from `first` on.

    If `first` is 1, 0 is an unknown user. `unknown` says how the model ranks for one: by a trained `row`, by the
    `history` alone, or not at all, so that the fallback list answers.
    """

    count: int
    first: int = 1
    unknown: UnknownUsers = "row"

    @property
    def last(self) -> int:
        """The largest id."""
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Types:
    """The event types that a model distinguishes in histories: `count` consecutive ids from `first` on.

    If `first` is 1, 0 is padding. `unknown` is the id for a type that it does not know; None refuses the request.
    `default` is the id for each item of a history without types; None refuses it.
    """

    count: int
    first: int = 1
    unknown: int | None = None
    default: int | None = None

    @property
    def last(self) -> int:
        """The largest id."""
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Times:
    """How a model reads the times of histories, in Unix milliseconds.

    `default` is the time of each item of a history without times; None refuses the request. A model that takes
    `sorted_times` only refuses descending times.
    """

    default: int | None = None
    sorted_times: bool = False


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature that a model takes: one value, or a list of `width` values.

    Strings reach the model as numbers from `low` to `high`, which for others bound what a request may hold; None for
    no bound. Without a `default` every request must hold the feature.
    """

    name: str
    kind: FeatureKind
    width: int | None = None
    default: FeatureValue | None = None
    low: Number | None = None
    high: Number | None = None

    @property
    def filler(self) -> FeatureValue:
        """The value in padding rows, and in rows of a request without the feature."""
        if self.default is not None:
            return self.default
        least = 0 if self.low is None else max(self.low, 0)
        number: Number = least if self.high is None else min(least, self.high)
        number = bool(number) if self.kind == "bool" else float(number) if self.kind == "float" else number
        return number if self.width is None else (number,) * self.width


@dataclass(frozen=True, slots=True)
class Model:
    """The inputs and limits of the served model.

    `items` is the size of the catalogue, None if the model does not declare it; `longest_history` is the number of most
    recent items that the network reads, None for any number. No answer holds an item of `never_recommended`.
    `padding_id` pads histories; None means 0, which then is an item too. Histories hold ids below `history_items`; None
    means those of the catalogue. `users` is None if it takes none; so are `history_types` and `history_times`.
    `features` are in the order of a query's.
    """

    name: str
    version: str
    items: int | None
    default_k: int
    max_k: int
    longest_history: int | None
    score_tolerance: float
    never_recommended: frozenset[int] = frozenset()
    padding_id: int | None = None
    history_items: int | None = None
    users: Users | None = None
    history_types: Types | None = None
    history_times: Times | None = None
    features: tuple[Feature, ...] = ()
    reads_history: bool = True
    """Whether it ranks by histories; one that does not needs none."""

    @property
    def readable(self) -> int | None:
        """Ids below this may be in histories; None if the model does not declare it."""
        return self.items if self.history_items is None else self.history_items

    @property
    def known_items(self) -> int | None:
        """Ids below this are items that may be in histories or recommended; None if the model does not declare it."""
        return None if self.items is None else max(self.items, self.history_items or 0)

    @property
    def last_item(self) -> int:
        """The largest id that a history may hold; 0 if the model does not declare it."""
        last = max((self.readable or 1) - 1, 0)
        return last - 1 if last == self.padding_id else last

    @property
    def some_item(self) -> int:
        """An item that every catalogue has."""
        return 0 if self.padding_id != 0 else 1

    @property
    def label(self) -> str:
        """`name@version`, as replies and logs name it."""
        return f"{self.name}@{self.version}"
