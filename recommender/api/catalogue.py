"""The catalogue of a version, as requests name its items, with unknown items left out and reported."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Sequence
from itertools import compress, islice

import numpy as np

from recommender.api.options import Prepared
from recommender.api.rules import AskedRules, about
from recommender.api.users import User
from recommender.catalogue.attributes.filters import Attributes, Filter
from recommender.catalogue.attributes.opening import EXTRA
from recommender.domain import Ranking
from recommender.errors import InvalidRequestError, RecommenderError, Violation, quoted
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.new_items import Beside, NewItems
from recommender.routing.answering import NO_REMARKS, Remarks
from recommender.rules import Boost, Bound, Rules, Taking

_RULED = ("scores", "k", "candidates")
"""Inputs that a model needs for rules."""
_NAMED_VIOLATIONS = 10
"""A caller's status stays small, however many items are unknown."""


class Catalogue:
    """Looks up the items of one request in a version, and collects those that it lacks.

    `matching` items are what its filter selects; None without a filter. New items are known like the version's own,
    except in histories: the model has learned nothing about them.
    """

    def __init__(self, version: Version, *, reject_unknown: bool, matching: int | None = None) -> None:
        self._version = version
        self._new = None if version.beside is None else version.beside.items
        self._matching = matching
        self._reject_unknown = reject_unknown
        self._unknown_ids: dict[int, None] = {}
        self._unknown_keys: dict[str, None] = {}

    def known(self, field: str, ids: Sequence[int], keys: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of a list without the unknown ones; `field` is its name in the proto up to `_ids`.

        Raises InvalidRequestError if unknown items are to be rejected.
        """
        if keys:
            return self._known_keys(f"{field}_keys", keys)
        known, items, padding = tuple(ids), self._version.model.known_items, self._version.model.padding_id
        if not known or ((items is None or max(known) < items) and padding not in known):
            return known
        unknown = dict.fromkeys(
            item
            for item in known
            if item == padding or (items is not None and item >= items and self._new_key(item) is None)
        )
        if not unknown:
            return known
        if self._reject_unknown:
            last = "and above" if items is None else f"to {items - 1}"
            but = "" if padding is None else f", {padding} being padding"
            raise _unknown(f"{field}_ids", known, unknown, f"the catalogue has the ids 0 {last}{but}")
        self._unknown_ids |= unknown
        return tuple(item for item in known if item not in unknown)

    def readable(self, named: tuple[int, ...], *, by_keys: bool) -> tuple[int, ...]:
        """Return the known items that the model reads in histories; the others are reported as unknown."""
        end = self._version.model.readable
        if not named or end is None or max(named) < end:
            return named
        unread = list(dict.fromkeys(item for item in named if item >= end))
        if by_keys and self._version.vocabulary is not None:
            self._unknown_keys |= dict.fromkeys(
                self._new_key(item) or self._version.vocabulary.keys([item])[0] for item in unread
            )
        else:
            self._unknown_ids |= dict.fromkeys(unread)
        return tuple(item for item in named if item < end)

    def places(self, ids: Sequence[int], keys: Sequence[str]) -> list[int]:
        """Return the places of a list whose items are known and `readable`."""
        model, vocabulary = self._version.model, self._version.vocabulary
        items = vocabulary.ids(keys) if keys and vocabulary is not None else ids
        end = math.inf if model.readable is None else model.readable
        return [
            place for place, item in enumerate(items) if item is not None and item < end and item != model.padding_id
        ]

    def recommendable(self, known: Collection[int]) -> frozenset[int]:
        """Return those of known items that an answer may hold: others are in none anyway."""
        items = self._version.model.items
        if not known or items is None or max(known) < items:
            return frozenset(known)
        return frozenset(item for item in known if item < items)

    def beside(
        self, excluded: Collection[int], candidates: Collection[int] | None, wanted: Filter | None
    ) -> Beside | None:
        """Return the new items that an answer may hold; None without any."""
        version = self._version
        if version.beside is None or not (excluded or candidates is not None or wanted is not None):
            return version.beside
        items = version.beside.items
        allowed = np.ones(len(items), np.bool_) if candidates is None else items.among(candidates)
        if excluded:
            allowed &= ~items.among(excluded)
        if wanted is not None:
            selected = attributes_of(version).mask_of_new(wanted, items)
            self._matching = (self._matching or 0) + int(np.count_nonzero(selected))
            allowed &= selected
        return Beside(items, allowed) if allowed.any() else None

    @property
    def matching(self) -> int | None:
        """The number of items that the filter selects, with new ones once `beside` was read; None without a filter."""
        return self._matching

    def remarks(
        self, user: User, ignored: Sequence[str], *, is_fallback: bool = False, is_user_alone: bool = False
    ) -> Remarks:
        """Return the report on the request besides its ranking; `ignored` are fields without an input."""
        told = self._unknown_ids or self._unknown_keys or user.unknown or ignored
        if not (told or is_fallback or is_user_alone or self._matching is not None or self._new):
            return NO_REMARKS
        unknown = tuple(self._unknown_ids), tuple(self._unknown_keys)
        return Remarks(*unknown, is_fallback, is_user_alone, user.unknown, ignored, self._matching, self._new)

    def _known_keys(self, field: str, keys: Sequence[str]) -> tuple[int, ...]:
        vocabulary = self._version.vocabulary
        if vocabulary is None:
            label = self._version.model.label
            raise InvalidRequestError(Violation(field, f"model {label} has no vocabulary: name items by ids"))
        ids = vocabulary.ids(keys)
        new = self._new
        if new is not None and None in ids:
            ids = [new.id_of(key) if item is None else item for key, item in zip(keys, ids, strict=True)]
        padding = self._version.model.padding_id
        if padding in ids and padding is not None:
            ids = [None if item == padding else item for item in ids]
        if None in ids:
            unknown = dict.fromkeys(key for key, item in zip(keys, ids, strict=True) if item is None)
            if self._reject_unknown:
                raise _unknown(field, keys, unknown, "the vocabulary does not have it")
            self._unknown_keys |= unknown
        return tuple(item for item in ids if item is not None)

    def _new_key(self, item: int) -> str | None:
        return None if self._new is None else self._new.key_of(item)


def keys_of(version: Version, ids: Sequence[int], new: NewItems | None) -> list[str]:
    """The keys of items that a version with a vocabulary ranked, with its `new` items at the time."""
    vocabulary = version.vocabulary
    if vocabulary is None:
        raise AssertionError("a version without a vocabulary has no keys")
    if new is None:
        return vocabulary.keys(ids)
    first = int(new.ids[0])
    own = iter(vocabulary.keys([item for item in ids if item < first]))
    return [next(own) if item < first else new.key_of(item) or "" for item in ids]


def fallback_of(
    version: Version,
    k: int,
    excluded: frozenset[int],
    candidates: frozenset[int] | None,
    chosen: ItemMask | None,
    rules: Rules | None,
) -> Ranking:
    """The best of a version's fallback list, of those that are `chosen`, as the bounds of the rules allow."""
    offered: Iterable[int] = version.offered
    if chosen is not None:
        offered = compress(offered, chosen.holds(np.array(version.offered, np.int64)).tolist())
    kept = (item for item in offered if item not in excluded and (candidates is None or item in candidates))
    if rules is None:
        return Ranking(list(islice(kept, k)), [])
    taking = Taking(k, rules.bounds)
    taking.take(list(kept))
    return Ranking(taking.ids, [])


def nothing_known(version: Version, ids: Sequence[int], keys: Sequence[str]) -> InvalidRequestError:
    """The refusal of a history of which nothing is known, by a version without a fallback list."""
    model = version.model
    lacks = f"and model {model.label} has no fallback list to answer from"
    if model.users is not None:
        lacks = f"no known user either, {lacks}"
    if keys:
        return InvalidRequestError(Violation("item_keys", f"the vocabulary has no key of the history, {lacks}"))
    if not ids:
        return InvalidRequestError(Violation("item_ids", f"the request names neither item_ids nor item_keys, {lacks}"))
    known = f": its ids are 0 to {model.readable - 1}" if model.readable is not None else ""
    return InvalidRequestError(Violation("item_ids", f"the history has no item of the catalogue{known}, {lacks}"))


def attributes_of(version: Version) -> Attributes:
    """Attributes of a version's items. Raises InvalidRequestError if it has none."""
    if version.attributes is None:
        raise InvalidRequestError(
            Violation(
                "filter",
                f"nothing is known of the items of model {version.model.label}: filters need a table of items "
                f"(RECOMMENDER_ITEMS and a model with keys, or a table that its card lists) and the extra {EXTRA}",
            )
        )
    return version.attributes


async def prepare_mask(version: Version, wanted: Filter, prepared: Prepared, deadline: float) -> None:
    """Put the items of a version that a filter selects into `prepared`, or the error, which is raised too."""
    attributes = attributes_of(version)
    try:
        prepared[version, wanted] = await attributes.prepare(wanted, deadline)
    except RecommenderError as error:
        prepared[version, wanted] = error
        raise


def mask_of(version: Version, wanted: Filter, prepared: Prepared | None) -> ItemMask:
    """The items of a version that a filter selects.

    Takes milliseconds unless it was prepared. Raises InvalidRequestError if the version cannot evaluate the filter, and
    the error of its preparation if that failed.
    """
    ready = None if prepared is None else prepared.get((version, wanted))
    if isinstance(ready, RecommenderError):
        raise ready
    return attributes_of(version).mask(wanted) if ready is None else ready


def selected(version: Version, wanted: Filter | None, prepared: Prepared | None) -> ItemMask | None:
    """The items of a version that a request's filter selects; None without a filter. Raises what `mask_of` raises."""
    if wanted is None:
        return None
    if "candidates" not in version.abilities:
        label = version.model.label
        raise InvalidRequestError(Violation("filter", f"model {label} was exported without the input `candidates`"))
    return mask_of(version, wanted, prepared)


def rules_for(version: Version, asked: AskedRules, prepared: Prepared | None) -> Rules:
    """The rules for a version's items.

    Raises InvalidRequestError if the version cannot keep one, and what `mask_of` raises.
    """
    first = "boosts" if asked.boosts else "max_per"
    for ability in _RULED:
        if ability not in version.abilities:
            lacks = "gives no scores" if ability == "scores" else f"was exported without the input `{ability}`"
            raise InvalidRequestError(Violation(first, f"model {version.model.label} {lacks}"))
    new = None if version.beside is None else version.beside.items
    boosts = []
    for place, boost in enumerate(asked.boosts):
        with about(f"boosts[{place}].filter"):
            attributes = attributes_of(version)
            of_new = None if new is None else attributes.mask_of_new(boost.filter, new)
            boosts.append(Boost(mask_of(version, boost.filter, prepared), of_new, boost.factor, boost.addend))
    bounds = []
    for place, (attribute, most) in enumerate(asked.bounds):
        with about(f"max_per[{place}].attribute"):
            bounds.append(Bound(most, attributes_of(version).values(attribute, new)))
    return Rules(tuple(boosts), tuple(bounds))


def _unknown(field: str, named: Sequence[object], unknown: Container[object], why: str) -> InvalidRequestError:
    """The refusal of a list with unknown items; it names the first few with their places."""
    places = [(index, item) for index, item in enumerate(named) if item in unknown]
    return InvalidRequestError(
        *(
            Violation(f"{field}[{index}]", f"{quoted(item)} is unknown: {why}")
            for index, item in places[:_NAMED_VIOLATIONS]
        )
    )
