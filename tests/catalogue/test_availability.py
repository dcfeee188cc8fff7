"""Availability: a list of hidden items in force in every version, from its first answer on."""

from __future__ import annotations

import asyncio
import queue
from pathlib import Path

from structlog.testing import capture_logs

from recommender.catalogue.availability.lists import KeyList, Mark
from recommender.models.availability import Availability, Shelf
from recommender.models.version import Version
from recommender.models.vocabulary import Vocabulary, write_vocabulary
from tests.support.fakes import FakeEngine, make_batcher
from tests.support.versions import version_of

ITEMS = 50


class Lines:
    """A source with a list that the test holds."""

    place = "here"

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self._in_force: queue.SimpleQueue[Mark] = queue.SimpleQueue()

    def read(self, known: Mark | None) -> tuple[KeyList, Mark] | None:
        content = "\n".join(self.keys)
        if known == content:
            self._in_force.put(content)
            return None
        return KeyList(content.encode()), content

    async def change(self, *keys: str) -> None:
        """Have other keys, and wait until they are known."""
        self.keys = keys
        while await asyncio.to_thread(self._in_force.get, timeout=30) != "\n".join(keys):
            pass


def version(folder: Path, number: str, **changes: object) -> Version:
    """A version with the keys `item 0` and so on, and one more."""
    path = folder / f"{number}.keys"
    write_vocabulary([f"item {item}" for item in range(ITEMS - 1)] + [f"only {number}"], path)
    vocabulary = Vocabulary.open(path, ITEMS)
    batcher = make_batcher(FakeEngine())
    return version_of(batcher, version=number, items=ITEMS, vocabulary=vocabulary, **changes)


def hidden_in(of: Version) -> list[int]:
    """The items that an answer of this version may not hold."""
    return [item for mask in of.masks for item in sorted(set(range(ITEMS)) - set(mask.ids().tolist()))]


async def test_a_list_is_in_force_in_versions_that_are_there_and_in_those_that_come(tmp_path: Path) -> None:
    source = Lines("item 3", "item 7", "only 2", "nobody's")
    availability = Availability(source, every=0.01)
    await availability.start()
    first, second = version(tmp_path, "1", fallback=(7, 8, 3)), version(tmp_path, "2")
    with capture_logs() as log:
        await availability.attach(first)
        await availability.attach(second)
    try:
        assert (hidden_in(first), hidden_in(second)) == ([3, 7], [3, 7, 49])
        assert first.offered == (8,)
        assert availability.shelves() == {"shop@1": Shelf(2, 2), "shop@2": Shelf(3, 1)}
        told = [(line["model"], line["hidden"], line["unknown"], line["such_as"]) for line in log]
        assert told == [("shop@1", 2, 2, ["only 2", "nobody's"]), ("shop@2", 3, 1, ["nobody's"])]
        availability.forget(first)
        await source.change("item 8")
        assert hidden_in(second) == [8]
        assert list(availability.shelves()) == ["shop@2"]
        await source.change("")
        assert second.masks == ()
    finally:
        await availability.close()


async def test_a_model_that_may_be_left_with_too_few_items_is_warned_of(tmp_path: Path) -> None:
    availability = Availability(Lines("item 3"))
    await availability.start()
    with capture_logs() as log:
        await availability.attach(version(tmp_path, "1", abilities=frozenset({"k", "scores"})))
    await availability.close()

    (warning,) = (line for line in log if line["log_level"] == "warning")
    assert warning["event"] == "hidden items may leave too few for an answer: the model has no input `candidates`"
    assert warning["of"] == 20
