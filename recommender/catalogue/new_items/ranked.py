"""The new items that one version ranks: those with a vector that fits, without those that it has itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from recommender.catalogue.new_items.journal import NewChanges, NewEntry
from recommender.new_items import AttributeValues, Floats, NewItems

_FIRST_ROWS = 64
_NOTHING = -1
_NONE = "{}"
"""No attributes, as JSON."""


class _Told(NamedTuple):
    """Attributes from a call for one of the version's own items, as JSON."""

    item: int
    change: int
    attributes: str


class Keys(Protocol):
    """A vocabulary."""

    def ids(self, keys: Iterable[str]) -> Sequence[int | None]:
        """The item id of each key, None if it is no item's."""


class _Rows:
    """Items in rows that are used again: a change of a few items costs what these take."""

    def __init__(self, size: int) -> None:
        self.places: dict[tuple[str, str], int] = {}
        """The row of each version and key."""
        self.names: list[tuple[str, str]] = []
        self.attributes: list[AttributeValues] = []
        self.numbers: npt.NDArray[np.int64] = np.full(_FIRST_ROWS, _NOTHING)
        """`_NOTHING` in a row that is free."""
        self.changes = np.zeros(_FIRST_ROWS, np.int64)
        self.vectors: Floats = np.zeros((_FIRST_ROWS, size), np.float32)
        self.biases: Floats = np.zeros(_FIRST_ROWS, np.float32)
        self._free: list[int] = []

    def put(self, entry: NewEntry, vector: bytes) -> None:
        """Add an item, or replace it."""
        name = (entry.model, entry.key)
        place = self.places.get(name)
        if place is None:
            place = self.places[name] = self._free.pop() if self._free else self._another()
        self.names[place] = name
        self.attributes[place] = json.loads(entry.attributes)
        self.numbers[place], self.changes[place] = entry.number, entry.change
        self.vectors[place], self.biases[place] = np.frombuffer(vector, np.float32), entry.bias

    def drop(self, name: tuple[str, str]) -> None:
        """Remove an item, if it is there."""
        place = self.places.pop(name, None)
        if place is not None:
            self.numbers[place] = _NOTHING
            self._free.append(place)

    def _another(self) -> int:
        place = len(self.names)
        self.names.append(("", ""))
        self.attributes.append({})
        if place == len(self.numbers):
            self.numbers = np.concatenate([self.numbers, np.full(place, _NOTHING)])
            self.changes = np.concatenate([self.changes, np.zeros_like(self.changes)])
            self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
            self.biases = np.concatenate([self.biases, np.zeros_like(self.biases)])
        return place


class RankedItems:
    """The new items of the version `label`, whose vectors have `size` numbers; none fit if that is 0.

    Vectors of other versions fit if these name the same `space`, which is None or empty for one of its own. Ids begin
    at `first_id`; those of the version's own that it may recommend are below `items`. For one thread at a time.
    """

    def __init__(
        self, label: str, space: str | None, size: int, vocabulary: Keys | None, *, items: int, first_id: int
    ) -> None:
        self.label = label
        self.space = space or ""
        self.size = 0 if vocabulary is None else size
        self._vocabulary = vocabulary
        self._items = items
        self._first_id = first_id
        self._rows = _Rows(self.size)
        self._own: set[tuple[str, str]] = set()
        self._told: dict[tuple[str, str], _Told] = {}
        self._learned: NewItems | None = None
        self._carried: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._rows.places)

    @property
    def in_catalogue(self) -> int:
        """How many fit that the version has in its own catalogue."""
        return len(self._own)

    def has(self, key: str) -> bool:
        """Whether one of them has this key, hidden or not."""
        return (self.label, key) in self._rows.places or any(key == name[1] for name in self._carried)

    def fits(self, model: str, space: str | None, size: int) -> bool:
        """Whether the version ranks items of this one by vectors of that size."""
        return size == self.size and (model == self.label or (bool(self.space) and space == self.space))

    def follow(self, changes: NewChanges) -> None:
        """Apply the changes by calls."""
        if changes.whole:
            self._rows = _Rows(self.size)
            self._own.clear()
            self._carried.clear()
            self._told, self._learned = {}, None
        if self._vocabulary is None:
            return
        known = self._vocabulary.ids([entry.key for entry in changes.entries])
        for entry, item in zip(changes.entries, known, strict=True):
            name = (entry.model, entry.key)
            self._note_told(name, entry, item)
            fits = entry.vector is not None and self.fits(entry.model, entry.space, len(entry.vector) // 4)
            if not fits or entry.vector is None:
                self._rows.drop(name)
                self._own.discard(name)
                self._carried.discard(name)
            elif item is not None:
                self._own.add(name)
            else:
                self._rows.put(entry, entry.vector)
                if entry.model != self.label:
                    self._carried.add(name)

    def learned(self) -> NewItems | None:
        """Items of the version's own that calls have told attributes of, for versions that were served; no vectors.

        None without any. The same object as long as nothing has changed.
        """
        if self._learned is None and self._told:
            latest: dict[int, _Told] = {}
            for told in self._told.values():
                if told.item not in latest or told.change > latest[told.item].change:
                    latest[told.item] = told
            items = sorted(latest)
            self._learned = NewItems(
                np.array(items, np.int64),
                [""] * len(items),
                np.zeros((len(items), 0), np.float32),
                np.zeros(len(items), np.float32),
                [json.loads(latest[item].attributes) for item in items],
            )
        return self._learned

    def _note_told(self, name: tuple[str, str], entry: NewEntry, item: int | None) -> None:
        """Note the attributes of an item of the version's own."""
        before = self._told.pop(name, None)
        if (
            item is not None
            and item < self._items
            and entry.vector is not None
            and entry.space is not None
            and entry.attributes != _NONE
        ):
            self._told[name] = _Told(item, entry.change, entry.attributes)
        now = self._told.get(name)
        if (before and (before.item, before.attributes)) != (now and (now.item, now.attributes)):
            self._learned = None

    def ranked(self, hidden: Callable[[Sequence[str]], npt.NDArray[np.bool_]]) -> NewItems | None:
        """The items that answers may hold; `hidden` says which keys are hidden. None without any."""
        rows = self._rows
        places = np.flatnonzero(rows.numbers != _NOTHING)
        if self._carried:
            places = np.setdiff1d(places, np.array(self._beaten(), np.int64))
        places = places[np.argsort(rows.numbers[places])]
        keys = [rows.names[place][1] for place in places.tolist()]
        is_hidden = hidden(keys)
        if is_hidden.any():
            places = places[~is_hidden]
            keys = [rows.names[place][1] for place in places.tolist()]
        if not keys:
            return None
        return NewItems(
            rows.numbers[places] + (self._first_id - 1),
            keys,
            rows.vectors[places],
            rows.biases[places],
            [rows.attributes[place] for place in places.tolist()],
        )

    def _beaten(self) -> list[int]:
        """Rows whose key has a better one: the version's own, else that of the latest change."""
        rows = self._rows
        best: dict[str, tuple[str, str]] = {}
        beaten = []
        for name in self._carried:
            _, key = name
            rival = best.get(key) or ((self.label, key) if (self.label, key) in rows.places else None)
            if rival is None:
                best[key] = name
                continue
            places = rows.places[rival], rows.places[name]
            wins = rival[0] != self.label and rows.changes[places[1]] > rows.changes[places[0]]
            beaten.append(places[0] if wins else places[1])
            best[key] = name if wins else rival
        return beaten
