"""The summary of an export: what the network was taken for, so that its author can see a misunderstanding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recommender.export.subject import Subject
from recommender.models.card import Card, CardFeature

# A bias so many times the other scores' scale below them hides an item from every answer but the longest.
_FAR_BELOW = 1_000


def summary(subject: Subject, card: Card, path: Path) -> Iterator[str]:
    """Sentences on a written model, its files first."""
    sizes = ", ".join(f"{file.path} ({file.size:,} bytes)" for file in card.files)
    yield f"{path}: checked against the network, with its card; files: {sizes}"
    if subject.embeddings is None:
        yield f"Scores: {subject.name} yields those of all {card.items:,} items itself."
    else:
        bias = " plus item_bias()" if subject.bias is not None else ""
        table = f"item_embeddings() of {card.items:,} items"
        yield f"Scores: user vectors of {card.embedding_size} numbers times {table}{bias}."
    cut = "of any length" if card.longest_history is None else f"cut to their {card.longest_history} most recent items"
    if card.reads_history:
        yield f"Histories: ids 0 to {(card.history_items or card.items) - 1}, {cut}."
    else:
        yield "Histories: not read, and not needed."
    if card.users is not None:
        last = card.users.first + card.users.count - 1
        unknown = {
            "row": "by the row for user 0",
            "history": "by their history alone",
            "fallback": "by the fallback list",
        }
        yield f"Users: ids {card.users.first} to {last}; unknown ones {unknown[card.users.unknown]}."
    if (types := card.history_types) is not None:
        last, unknown_ones = types.first + types.count - 1, _read(types.unknown)
        yield (
            f"Types of events: ids {types.first} to {last}; unknown ones are {unknown_ones}, and a history without "
            f"types is {_read(types.default)}."
        )
    if (times := card.history_times) is not None:
        order = "in order only" if times.sorted_times else "in any order"
        yield f"Times: Unix milliseconds, {order}; a history without times is {_read(times.default)}."
    if card.features:
        yield f"Features: {', '.join(map(_feature, card.features))}."
    if card.padding_id is not None:
        yield f"Padding: id {card.padding_id}, which is not an item."
    yield f"Answers: {card.default_k} items for a request without a limit, {card.max_k} at most."
    if card.never_recommended:
        yield f"Never recommended: {len(card.never_recommended):,} items."
    hidden = _far_below(subject)
    if hidden:
        yield (
            f"Note: the bias of {hidden:,} items is far below all scores. They come last, and they do come back; "
            "-inf means never."
        )


def _feature(feature: CardFeature) -> str:
    width = "" if feature.width is None else f" [{feature.width}]"
    strings = "" if feature.tokens is None else f" of {feature.tokens:,} tokens"
    needed = "needed" if feature.default is None else f"else {feature.default}"
    return f"{feature.name} ({feature.type}{width}{strings}, {needed})"


def _read(stands_for: int | None) -> str:
    return "refused" if stands_for is None else f"read as {stands_for}"


def _far_below(subject: Subject) -> int:
    """How many items have a bias that no user vector makes up for."""
    if subject.bias is None or subject.embeddings is None:
        return 0
    middle = np.median(subject.bias)
    scale = np.median(np.abs(subject.bias - middle)) + np.median(np.linalg.norm(subject.embeddings, axis=1))
    return int((subject.bias < middle - _FAR_BELOW * scale).sum())
