"""The lists next to a model: the items' keys, and the fallback list."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recommender.catalogue.attributes.opening import check_own_table
from recommender.domain import Times, Types, Users
from recommender.errors import StartError
from recommender.export.errors import ExportError
from recommender.models.card import Files
from recommender.models.fallback import write_fallback
from recommender.models.parity import Names
from recommender.models.vocabulary import write_vocabulary


@dataclass(frozen=True, slots=True)
class Lists:
    """The key of each item, in the order of ids, and a fallback list of item ids, best first; None where not given.

    `never` are the items of the never-recommend list, `user_keys` the key of each user, in the order of their numbers,
    `type_keys` those of the types of events, `table` a table of the items' attributes.
    """

    keys: tuple[str, ...] | None
    fallback: tuple[int, ...] | None
    never: tuple[int, ...] = ()
    user_keys: tuple[str, ...] | None = None
    type_keys: tuple[str, ...] | None = None
    table: Path | None = None

    @classmethod
    def read(
        cls,
        vocabulary: Path | None,
        fallback: Path | None,
        items: int,
        never_recommend: Path | None = None,
        keys: int | None = None,
    ) -> Lists:
        """Read the text files for a catalogue of `items` items, of which `keys` have keys; None for all.

        The fallback and the never-recommend list have a key a line where there is a vocabulary, else an item id. Raises
        ExportError where a file cannot be read, has not one key for each item, or names an item twice or one that there
        is not.
        """
        ids: dict[str, int] | None = None
        if vocabulary is not None:
            lines = lines_of(vocabulary)
            if len(lines) != (keys or items):
                raise ExportError(
                    f"{vocabulary} has {len(lines)} keys and the catalogue {keys or items} items; give one key a line, "
                    "line i the key of item i."
                )
            ids = {key: item for item, key in enumerate(lines)}
        return cls(
            keys=None if ids is None else tuple(ids),
            fallback=None if fallback is None else _ids(fallback, ids, items),
            never=() if never_recommend is None else _ids(never_recommend, ids, items),
        )

    def with_users(self, vocabulary: Path | None, users: Users | None) -> Lists:
        """The same with the keys of users; raises ExportError where the file has not one for each."""
        if vocabulary is None or users is None:
            return self
        keys = tuple(lines_of(vocabulary))
        if len(keys) != users.count:
            raise ExportError(
                f"{vocabulary} has {len(keys)} keys and the network {users.count} users; give one key a line, the "
                f"first the key of user {users.first}."
            )
        return replace(self, user_keys=keys)

    def with_types(self, vocabulary: Path | None, types: Types | None) -> Lists:
        """The same with the keys of types of events; raises ExportError where the file has not one for each."""
        if vocabulary is None or types is None:
            return self
        keys = tuple(lines_of(vocabulary))
        if len(keys) != types.count:
            raise ExportError(
                f"{vocabulary} has {len(keys)} keys and the network {types.count} types of events; give one key a "
                f"line, the first the key of type {types.first}."
            )
        return replace(self, type_keys=keys)

    def with_table(self, table: Path | None, items: int) -> Lists:
        """The same with a table of the items' attributes; raises ExportError if it does not fit `items` items."""
        if table is None:
            return self
        try:
            check_own_table(table, items, has_keys=self.keys is not None)
        except StartError as error:
            raise ExportError(f"{error}.") from error
        return replace(self, table=table)

    def names(
        self,
        items: int,
        readable: int,
        users: Users | None,
        types: Types | None = None,
        times: Times | None = None,
    ) -> Names:
        """Names that a parity file may use, for so many items; histories hold those below `readable`."""
        return Names(
            items,
            readable,
            _numbered(self.keys, 0),
            users,
            _numbered(self.user_keys, 1 if users is None else users.first),
            types,
            _numbered(self.type_keys, 1 if types is None else types.first),
            times,
        )

    def check_fallback(self, never: Sequence[int]) -> None:
        """Raise ExportError if the fallback list holds an item that is never recommended."""
        for item in self.fallback or ():
            if item in never:
                name = item if self.keys is None else repr(self.keys[item])
                raise ExportError(
                    f"The fallback list holds item {name}, which is never recommended; take it out of one."
                )

    def write(self, model: Path) -> Files:
        """Write the lists next to the model file; returns the files."""
        files: Files = {}
        if self.keys is not None:
            path = model.with_suffix(".keys")
            write_vocabulary(self.keys, path)
            files[path] = "vocabulary"
        if self.fallback is not None:
            path = model.with_suffix(".fallback.txt")
            write_fallback(self.fallback, path)
            files[path] = "fallback"
        if self.user_keys is not None:
            path = model.with_suffix(".users")
            write_vocabulary(self.user_keys, path)
            files[path] = "user_vocabulary"
        if self.type_keys is not None:
            path = model.with_suffix(".types")
            write_vocabulary(self.type_keys, path)
            files[path] = "type_vocabulary"
        if self.table is not None:
            path = model.with_suffix(f".items{self.table.suffix.lower()}")
            if path.exists() and path.samefile(self.table):
                raise ExportError(f"{self.table} is where the model's own copy of it goes; give it another name.")
            shutil.copyfile(self.table, path)
            files[path] = "items_table"
        return files


def _numbered(keys: Sequence[str] | None, first: int) -> dict[str, int] | None:
    return None if keys is None else {key: number for number, key in enumerate(keys, first)}


def _ids(path: Path, known: Mapping[str, int] | None, items: int) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for number, line in enumerate(lines_of(path), 1):
        if known is not None:
            item = known.get(line, items)
            expected = "a key of the vocabulary" + (" that may be recommended" if items < len(known) else "")
        else:
            item = int(line) if line.isascii() and line.isdecimal() else items
            expected = f"an item id from 0 to {items - 1}"
        if item >= items:
            raise ExportError(f"{path}, line {number}: {line!r} is not {expected}; give one a line.")
        if item in found:
            raise ExportError(f"{path}, line {number}: item {item} stands in line {found[item]} already; give it once.")
        found[item] = number
    return tuple(found)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, each of them once and none empty."""
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ExportError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8."
        ) from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}; give a text file.") from error
    if not text:
        raise ExportError(f"{path} is empty; give one entry a line, or leave it out.")
    lines = text.split("\n")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise ExportError(f"{path}, line {number} is empty; every line names one item.")
        if line in seen:
            raise ExportError(f"{path}, line {number}: {line!r} stands in line {seen[line]} already; give it once.")
        seen[line] = number
    return lines
