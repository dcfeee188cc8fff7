"""The journal: what it keeps, what readers learn of it, and where its limits are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.catalogue.availability import journal as module
from recommender.catalogue.availability.journal import Changes, Entry, Journal, Written
from recommender.errors import CatalogueFullError, StartError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal.open(path)) as opened:
        yield opened


class Reader:
    """The view of a reader that asks for changes now and then."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal.open(path)
        self.known: set[tuple[str, str]] = set()
        self.read_anew = 0
        self._seen: int | None = None

    def look(self) -> None:
        changes = self.journal.changes(self._seen)
        if changes is None:
            return
        if changes.whole:
            self.known.clear()
            self.read_anew += 1
        for model, item, hidden in changes.entries:
            (self.known.add if hidden else self.known.discard)((model, item))
        self._seen = changes.number


def test_a_change_says_what_it_changed_and_the_same_again_changes_nothing(journal: Journal) -> None:
    assert journal.write("", ["a", "b", "a"], hidden=True) == Written(2, 2)
    assert journal.write("", ["b", "c"], hidden=True) == Written(1, 3)
    assert journal.write("", ["b"], hidden=True) == Written(0, 3)
    assert journal.write("shop@1", ["7"], hidden=True) == Written(1, 4)
    assert journal.write("", ["b", "never"], hidden=False) == Written(1, 3)
    assert journal.write("", ["b"], hidden=False) == Written(0, 3)
    assert journal.hidden() == 3
    assert journal.page(None, 2) == [Entry("", "a", hidden=True), Entry("", "c", hidden=True)]
    assert journal.page(Entry("", "c", hidden=True), 2) == [Entry("shop@1", "7", hidden=True)]


def test_a_reader_is_told_of_changes_only(journal: Journal) -> None:
    journal.write("", ["a", "b"], hidden=True)
    first = journal.changes()
    assert first == Changes(1, [Entry("", "a", hidden=True), Entry("", "b", hidden=True)], whole=True)
    assert journal.changes(1) is None
    journal.write("", ["a"], hidden=False)
    assert journal.changes(1) == Changes(2, [Entry("", "a", hidden=False)], whole=False)
    assert journal.changes() == Changes(2, [Entry("", "b", hidden=True)], whole=True)


def test_more_than_may_be_hidden_are_refused_as_a_whole(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HIDDEN", 3)
    journal.write("", ["a", "b"], hidden=True)
    with pytest.raises(CatalogueFullError, match="3 items may be hidden by calls, and these would make it 4"):
        journal.write("", ["c", "d"], hidden=True)

    assert journal.page(None, 9) == [Entry("", "a", hidden=True), Entry("", "b", hidden=True)]
    assert journal.write("", ["c", "a"], hidden=True) == Written(1, 3)
    assert journal.write("", ["a"], hidden=False) == Written(1, 2)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["", "shop@1"]), st.lists(st.sampled_from("123456"), max_size=4), st.booleans()),
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(changes=CHANGES, looks=st.sets(st.integers(0, 29)))
def test_readers_that_look_now_and_then_know_what_is_hidden(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, list[str], bool]], looks: set[int]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    wanted: set[tuple[str, str]] = set()
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(Journal.open(path)) as one,
        closing(Journal.open(path)) as other,
    ):
        patch.setattr(module, "_MOST_SHOWN", 2)
        reader = Reader(path)
        with closing(reader.journal):
            for number, (model, items, hidden) in enumerate(changes):
                before = len(wanted)
                named = {(model, item) for item in items}
                wanted = wanted | named if hidden else wanted - named
                written = (one, other)[number % 2].write(model, items, hidden=hidden)
                assert written == Written(abs(len(wanted) - before), len(wanted))
                if number in looks:
                    reader.look()
                    assert reader.known == wanted
            reader.look()

            assert reader.known == wanted
            assert {entry[:2] for entry in one.page(None, 100)} == wanted


def test_another_program_s_file_is_not_touched(path: Path) -> None:
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StartError, match="is no journal of this version"):
        Journal.open(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StartError, match="cannot be opened: file is not a database"):
        Journal.open(path)
    with pytest.raises(StartError, match="cannot be opened"):
        Journal.open(path.parent / "none" / "journal.sqlite")

    assert b"theirs" in before


def test_what_is_written_to_a_deleted_file_is_refused_and_not_lost(journal: Journal, path: Path) -> None:
    journal.write("", ["a"], hidden=True)
    path.unlink()
    with pytest.raises(sqlite3.OperationalError, match="deleted or replaced"):
        journal.write("", ["b"], hidden=True)
