"""Interactions: who took which item when. Histories, a test split and popularity are made of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recommender.export.errors import ExportError

_USERS = ("user_id", "user", "userid", "uid", "session_id", "visitorid")
_ITEMS = ("item_id", "item", "itemid", "iid", "movieid", "movie_id")
_TIMES = ("timestamp", "datetime", "time", "ts", "date", "unix_timestamp")
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Held:
    """A user of the test split: all items but the last, oldest first, and that last one.

    `times` are those of all these items, in Unix seconds.
    """

    user: str
    history: tuple[str, ...]
    wanted: str
    times: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interactions:
    """The items of each user, oldest first; users in the order of their first line. `sha256` is the file's.

    `times` are those of each user's items, in Unix seconds; all are 0 in a file without times.
    """

    histories: Mapping[str, tuple[str, ...]]
    times: Mapping[str, tuple[int, ...]]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Interactions:
        """Read a text file with a header: columns of users, items and, for the order, times.

        Columns are separated by commas, semicolons, tabs or bars. `user_id:token`, as RecBole writes it, is `user_id`.
        Raises ExportError if the file cannot be read so.
        """
        found: dict[str, list[tuple[float, str]]] = {}
        try:
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            rows = _rows(path, text.decode("utf-8-sig"))
            for user, item, time in rows:
                found.setdefault(user, []).append((time, item))
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise ExportError(f"{path} cannot be read as interactions: {error}.") from error
        if not found:
            raise ExportError(f"{path} has no interaction; give a header and one interaction a line.")
        for taken in found.values():
            taken.sort(key=lambda each: each[0])
        histories = {user: tuple(item for _, item in taken) for user, taken in found.items()}
        times = {user: tuple(int(time) for time, _ in taken) for user, taken in found.items()}
        return cls(histories, times, hashlib.sha256(content).hexdigest())

    def need_times(self) -> None:
        """Raise ExportError if the file has no times, for a model that reads them."""
        if not any(map(any, self.times.values())):
            raise ExportError("The model reads times, and the interactions have none; give a column timestamp.")

    def held_out(self) -> list[Held]:
        """Each user's last item; users with one item have no history to rank by and are left out."""
        return [
            Held(user, history[:-1], history[-1], self.times[user])
            for user, history in self.histories.items()
            if len(history) > 1
        ]

    def popular(self) -> list[str]:
        """All items, that of most users first."""
        counts = Counter(item for history in self.histories.values() for item in set(history))
        return sorted(counts, key=lambda item: (-counts[item], item))

    def write_histories(self, path: Path, most: int) -> None:
        """Write some users' histories as JSONL, spread evenly over all users."""
        users = list(self.histories)
        chosen = [users[row * len(users) // most] for row in range(min(most, len(users)))] if most else users
        with path.open("w", encoding="utf-8") as file:
            for user in dict.fromkeys(chosen):
                line = {"user": user, "history": self.histories[user], "times": self.times[user]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _rows(path: Path, text: str) -> Iterator[tuple[str, str, float]]:
    header = text.partition("\n")[0]
    delimiter = max("\t,;|", key=header.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    names = [name.partition(":")[0].strip().lower() for name in next(reader, [])]
    user, item = _column(path, names, _USERS, "users"), _column(path, names, _ITEMS, "items")
    time = next((names.index(name) for name in _TIMES if name in names), None)
    for number, row in enumerate(reader, 2):
        if not row:
            continue
        try:
            yield row[user], row[item], 0.0 if time is None else _seconds(row[time])
        except (IndexError, ValueError) as error:
            raise ExportError(
                f"{path}, line {number}: {error}; expected are {len(names)} columns as in the header."
            ) from error


def _column(path: Path, names: Sequence[str], known: Sequence[str], what: str) -> int:
    for name in known:
        if name in names:
            return names.index(name)
    raise ExportError(f"{path} has no column of {what}: {', '.join(names)[:200]}; call it {known[0]}.")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
