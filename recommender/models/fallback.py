"""The fallback list: what a model recommends to those it knows nothing of, one item id a line, best first."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from recommender.engine.files import read_regular
from recommender.errors import ModelError

_MOST_DIGITS = 10
"""Ids are int32."""
_MOST_BYTES = 32
"""Of a line, its end and spaces included."""
_SHOWN = 40


def read_fallback(path: Path, items: int, never: Container[int] = ()) -> tuple[int, ...]:
    """The item ids of a list for a catalogue of `items` items, of which `never` are not recommended.

    ModelError names the first line that is at fault.
    """
    seen: dict[int, int] = {}
    try:
        content = read_regular(path, items * _MOST_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(content.decode("ascii", errors="replace").splitlines(), 1):
        text = line.strip()
        if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) >= items:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise ModelError(f"{path}, line {number}: {shown!r} is not an item id from 0 to {items - 1}")
        if int(text) in never:
            raise ModelError(f"{path}, line {number}: item {text} is on the never-recommend list of the card")
        if int(text) in seen:
            raise ModelError(f"{path}, line {number}: item {text} stands in line {seen[int(text)]} already")
        seen[int(text)] = number
    if not seen:
        raise ModelError(f"{path} lists no item")
    return tuple(seen)


def write_fallback(item_ids: Sequence[int], path: Path) -> None:
    """Write a list, best first."""
    path.write_text("".join(f"{item}\n" for item in item_ids), encoding="ascii")
